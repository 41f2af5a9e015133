"""Kernels that no cache has yet, compiled side by side.

Triton compiles a kernel where it is first called, and a launcher for it in C: 27 of them one after the other, most of a first start. In a
rehearsal a call of such a kernel is noted and left out, and the steps that are rehearsed go on; at its end threads compile what was noted.
What a left-out kernel would have written stays whatever the memory held, so one whose results are places in memory is compiled and run
at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any

import torch
import triton
from triton.runtime import build

from ramet.log import get_logger

_LOG = get_logger(__name__)

_MAKE_PLACES = ("_decode_inputs", "_choose_experts", "_order_by_expert")
_MOST_THREADS = 16
_HAS_HOOK = hasattr(triton, "knobs") and hasattr(build, "_load_module_from_path")
"""From Triton 3.4 on; elsewhere, kernels are compiled where they are called."""


def is_rehearsing() -> bool:
    """Whether results are nobody's: the steps may leave out what needs no other kernels, and must not be recorded."""
    return _HAS_HOOK and isinstance(getattr(triton.knobs.runtime.jit_cache_hook, "__self__", None), Rehearsal)


class Rehearsal:
    """While it is entered, kernels are called as the module says; nobody else may call any. Leaving it compiles them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._noted: dict[str, tuple[Any, str]] = {}  # the kernel, and for which types and constants

    @property
    def num_noted(self) -> int:
        """Different kernels that were left out."""
        return len(self._noted)

    def __enter__(self) -> Rehearsal:
        if _HAS_HOOK:
            triton.knobs.runtime.jit_cache_hook = self._is_left_out
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if _HAS_HOOK:
            triton.knobs.runtime.jit_cache_hook = None
        if self._noted and error is None:
            threads = min(len(self._noted), os.cpu_count() or 1, _MOST_THREADS)
            pool = ThreadPoolExecutor(threads, "ramet-compile", initializer=torch.cuda.set_device, initargs=(self._device,))
            with _launchers_apart(), pool:
                list(pool.map(_compile, self._noted.values()))

    def _is_left_out(self, *, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        """Triton's hook of a kernel that is not compiled yet: true if the call shall do nothing."""
        if fn.name in _MAKE_PLACES:
            return False
        self._noted[f"{fn.name} {compile['key']}"] = fn.jit_function, compile["specialization_data"]
        return True


@contextmanager
def _launchers_apart() -> Iterator[None]:
    """Lets threads load launchers. All of them are modules of one name, and Python gives a library that it loads for the second time the
    module that bears the name just then, with its own functions in it: a thread that has not yet taken its launcher out finds another's. So
    everybody gets a copy of the module as it was loaded."""
    load, lock = build._load_module_from_path, Lock()

    def load_apart(name: str, path: str) -> ModuleType:
        with lock:
            module = ModuleType(name)
            module.__dict__.update(vars(load(name, path)))
            return module

    build._load_module_from_path = load_apart
    try:
        yield
    finally:
        build._load_module_from_path = load


def _compile(noted: tuple[Any, str]) -> None:
    """Into the kernel's own cache. Where it fails, the first real call fails again, and says so to whom it concerns."""
    kernel, specialization = noted
    try:
        _ = kernel.preload(specialization).run  # a property that makes the launcher and loads the binary
    except Exception as error:
        _LOG.debug("Kernel not compiled ahead: %s", error)
