"""Ramet on a CPU beside what people use there today, on the same GGUF file, in one run. See `python -m benchmarks.cpu --help`."""
