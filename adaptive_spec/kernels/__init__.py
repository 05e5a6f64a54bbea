"""Triton kernels, and plain torch beside each of them."""
