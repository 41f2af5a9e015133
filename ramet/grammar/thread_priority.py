"""Work on grammars gives way to the model: on a busy machine it takes a tenth of a core, on an idle one all that it wants."""

from __future__ import annotations

import os
import threading

NICENESS = 10


def stand_back() -> None:
    """For a thread, as it starts. Nothing happens where priorities are those of whole processes."""
    if hasattr(os, "SCHED_IDLE"):  # Linux
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICENESS, 19))
