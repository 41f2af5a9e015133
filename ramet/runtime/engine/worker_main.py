"""The worker process: `python -m ramet.runtime.engine.worker_main --directory SOCKETS`, description on standard input."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial

from ramet.log import configure, get_logger
from ramet.runtime.engine.channel import Address, Channel, ZmqChannel
from ramet.runtime.engine.faults import fault_of
from ramet.runtime.engine.follower import Follower
from ramet.runtime.engine.worker import Worker
from ramet.runtime.engine.worker_assembly import build_worker
from ramet.runtime.engine.worker_parts import WorkerSpec
from ramet.runtime.executor.executor import Rank

_log = get_logger(__name__)
SWITCH_SECONDS = 0.0005
"""For which another thread may keep the interpreter from the scheduler's: Python's 5 ms are half a step, for every grammar that arrives."""


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    parser = argparse.ArgumentParser(prog="ramet worker")
    parser.add_argument("--directory", required=True, help="where the front's sockets are")
    address = Address(parser.parse_args().directory)
    lifeline = _take_over_stdin()
    spec = WorkerSpec.from_json(_read_line(lifeline))
    configure(_log_level(spec))
    channel = ZmqChannel.worker(address, lifeline)
    threading.Thread(target=_end_with_the_front, args=(lifeline, address, spec.rank), name="ramet-lifeline", daemon=True).start()
    return 0 if serve(spec, channel, _build_without_gc) else 1


def serve(spec: WorkerSpec, channel: Channel, build: Callable[[WorkerSpec, Channel], Worker | Follower] = build_worker) -> bool:
    """Build the worker and run it; whatever ends it is told to the front first. False: it ended by a fault."""
    try:
        worker = build(spec, channel)
        worker.run()
        return True
    except Exception as error:
        fault = fault_of(error)
        _log.error("The worker ends: %s\n%s", error, fault.details)
        channel.send(fault)
        return False
    finally:
        channel.close()


def _build_without_gc(spec: WorkerSpec, channel: Channel) -> Worker | Follower:
    """Imports and a loaded model are a million objects that live as long as the process: the collector would walk them again and
    again while they come to be (a tenth of the start), and later in the middle of a step."""
    gc.disable()
    worker = build_worker(spec, channel, partial(os._exit, 1))
    gc.freeze()
    gc.enable()
    return worker


def _take_over_stdin() -> int:
    """Keep the lifeline for ourselves: a child that inherited it would make us look alive after our death."""
    lifeline = os.dup(0)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (a descriptor is wanted)
        os.dup2(nothing.fileno(), 0)
    return lifeline


def _read_line(descriptor: int) -> bytes:
    """Byte by byte, so that nothing after the line is taken."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            sys.exit("the front went away before it described the worker")
        line += piece
    return bytes(line)


def _log_level(spec: WorkerSpec) -> str:
    """Of what every rank does alike, one speaks."""
    level = spec.config.log.log_level
    return "error" if spec.rank is not None and level in ("info", "warning") else level


def _end_with_the_front(lifeline: int, address: Address, rank: Rank | None) -> None:
    """Blocks until the front (of a rank: rank 0) is gone, then ends the process even where its main thread is deep in a kernel."""
    while os.read(lifeline, 1):
        pass
    address.remove()
    if rank is not None:
        shutil.rmtree(rank.meeting, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to be done; the libraries of several GPUs can wait for one another while they unload
