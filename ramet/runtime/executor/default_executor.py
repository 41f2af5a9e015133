"""Which executor runs a model: the CPU's own step where it covers the model, torch everywhere else.

Decided before torch is imported, which takes longer than all else of a start on a CPU, and 200 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.cpu_executor import create_cpu_executor
from ramet.runtime.executor.executor import Executor, Rank

GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
"""Without one of these files Linux has no driver that torch could use."""


def create_executor(config: EngineConfig, rank: Rank | None = None) -> Executor:
    """Load the configured model, or the part of it that `rank` has. Raises what `load_model` raises, `ConfigError` for a device that is
    not there, `Unsupported` for a quantization that cannot be had, `OutOfMemory`."""
    if rank is None and _runs_on_cpu(config.model.device):
        executor = create_cpu_executor(config)
        if executor is not None:
            return executor
    from ramet.runtime.executor.torch_executor import create_executor as create_torch_executor

    return create_torch_executor(config, rank)


def _runs_on_cpu(device: str) -> bool:
    if device != "auto":
        return device == "cpu"
    if sys.platform == "linux" and not any(Path(name).exists() for name in GPU_FILES):
        return True
    from ramet.runtime.executor.torch_executor import resolve_device

    return resolve_device(device).type == "cpu"
