"""Triton kernels. Imported only where a CUDA device is used; each function says beside it which torch operations it equals."""
