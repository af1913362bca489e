"""Kernels in Triton for what torch has no good operation for, each held to a plain PyTorch reference by tests."""
