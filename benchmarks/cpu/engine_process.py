"""An engine in a process of its own, started once and asked many times; stopped, and so off the cores, while others are measured."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_S = 240.0
SETTLE_TIMEOUT_S, SETTLE_INTERVAL_S = 20.0, 0.5
IDLE_SHARE = 0.05
"""Of a core: an engine that takes no more of it does nothing."""
_MIB = 1 << 20


class EngineFailed(Exception):
    """The engine could not be started, ended, threw, or did not answer in time; the message is what the table shows."""


class EngineProcess:
    """`ready_seconds`: from before the process existed until its first token. What the engine writes goes to `log`."""

    def __init__(self, python: Path, adapter: str, model: Path, log: Path) -> None:
        self._log = log
        began = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", adapter, str(model)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is this process's to decide
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.about: dict[str, Any] = self._next(START_TIMEOUT_S)["ready"]
        except EngineFailed:
            self.close()
            raise
        self.ready_seconds = time.perf_counter() - began

    def ask(self, prompts: Sequence[Sequence[int]], limit: int, schema: Mapping[str, Any] | None, timeout: float) -> dict[str, Any]:
        """One question of `line_server`. Raises EngineFailed; after a timeout the engine is of no more use."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompts": prompts, "limit": limit, "schema": schema}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EngineFailed(f"its process is gone: {self._last_words()}") from error
        answer = self._next(timeout)
        if "error" in answer:
            raise EngineFailed(answer["error"])
        return answer

    def settle(self) -> None:
        """Wait until it is idle: engines are ready before all is made that some requests will need."""
        deadline, before = time.monotonic() + SETTLE_TIMEOUT_S, self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(SETTLE_INTERVAL_S)
            now = self.cpu_seconds()
            if now - before < IDLE_SHARE * SETTLE_INTERVAL_S:
                return
            before = now

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[Self]:
        self.resume()
        try:
            yield self
        finally:
            self.pause()

    def resident_mib(self, *, peak: bool) -> float:
        """Of all its processes together, now or at their peaks; pages that several of them map count several times."""
        field = "VmHWM:" if peak else "VmRSS:"
        return sum(_status_kib(process.pid, field) for process in self._family()) * 1024 / _MIB

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._family()]
        return sum(each.user + each.system for each in times)

    def close(self) -> None:
        family = self._family()
        self.resume()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _next(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise EngineFailed(f"no answer in {timeout:.0f} s") from None
        if not line:
            self._lines.put("")  # for whoever asks again
            raise EngineFailed(f"its process ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (all of it: {self._log})"

    def _family(self) -> list[psutil.Process]:
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _status_kib(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)
