"""What compiling programs gains: the workloads of the SGLang paper, compiled against interpreted, at several round-trip times."""
