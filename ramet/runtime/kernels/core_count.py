"""How many threads compute: one per physical core that this process may use. Two threads on one core share its multipliers."""

from __future__ import annotations

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores(topology: Path = TOPOLOGY) -> int:
    """$OMP_NUM_THREADS where it is set, as torch has it too."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len({_siblings(topology, processor) for processor in processors})


def _siblings(topology: Path, processor: int) -> str:
    """The processors on its core; where the system does not tell, it has the core to itself."""
    try:
        return (topology / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)
