"""Policies: how much to draft and how much to verify. Pure host code, no torch."""

if __name__ != "adaptive_spec.controllers":
    raise ImportError("this folder is a door for readers: import adaptive_spec.controllers instead")
