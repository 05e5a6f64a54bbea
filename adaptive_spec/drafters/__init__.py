"""Drafters: who proposes the candidate tree."""
