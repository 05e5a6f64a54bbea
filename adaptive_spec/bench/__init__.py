"""Benchmarks: contestants on the same prompts, interleaved, in one process."""
