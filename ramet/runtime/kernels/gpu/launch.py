"""How kernels of one step follow each other without a gap.

With programmatic dependent launch (Hopper and later) a kernel starts while the one before it still runs, and waits inside for that
one's results. Every kernel that takes part waits before it reads or writes anything that another kernel touches, also where it has
nothing to do: the kernel after it relies on all before it being complete.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=8)
def capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA device: what NVIDIA counts its kinds of processor by."""
    return torch.cuda.get_device_capability(device)


def launch_options(device: torch.device) -> dict[str, bool]:
    """Keywords of every kernel call: `PDL` for the kernel, `launch_pdl` for the launcher."""
    if device.type != "cuda" or capability(device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}
