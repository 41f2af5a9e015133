"""The smallest pieces of computation, each with a plain twin beside it: C++ for CPUs, Triton for GPUs."""
