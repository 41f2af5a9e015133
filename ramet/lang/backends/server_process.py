"""`Runtime`: a server at an address, or one that this process starts and stops."""

from __future__ import annotations

import atexit
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ramet.errors import ConfigError, InternalError
from ramet.lang.backends.runtime_endpoint import RuntimeEndpoint
from ramet.lang.process import runner
from ramet.lang.runner import wait_for
from ramet.log import LEVELS

POLL_SECONDS = 0.1
STOP_SECONDS = 10.0


class Runtime:
    """`Runtime(endpoint="http://localhost:30000")` connects. `Runtime(model_path=…, tp_size=…)` launches a server with these flags on a
    free port, waits until it is healthy, and stops it at `shutdown()` or at the interpreter's exit."""

    def __init__(
        self,
        log_level: str = "error",
        *,
        endpoint: str | None = None,
        api_key: str | None = None,
        launch_timeout: float = 300.0,
        **server_args: Any,
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if endpoint is not None and server_args:
            raise ConfigError(
                f"Runtime(endpoint=…) connects to a running server; {', '.join(server_args)} would launch one", param="endpoint"
            )
        if log_level not in LEVELS:
            meant = f"endpoint={log_level!r}" if "://" in log_level else f"model_path={log_level!r}"
            raise ConfigError(f"Runtime({log_level!r}): its first argument is the log level; write Runtime({meant})", param="log_level")
        if endpoint is None:
            port = server_args.setdefault("port", _free_port())
            self._process = _launch({**server_args, "log_level": log_level, **({"api_key": api_key} if api_key else {})})
            atexit.register(self.shutdown)
            endpoint = f"http://{server_args.get('host', '127.0.0.1')}:{port}"
        self.url = endpoint
        self.backend = RuntimeEndpoint(endpoint, api_key)
        if self._process is not None:
            self._await_health(launch_timeout)

    def shutdown(self) -> None:
        """Stop the server, if this object started it."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.shutdown)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def generate(
        self,
        prompt: str | Sequence[str],
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        return_logprob: bool | Sequence[bool] | None = False,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        lora_path: str | None = None,
    ) -> str:
        """One prompt, or a list of them, without a program: SGLang's method, with SGLang's answer, which is the reply of `/generate` as
        JSON text. (`Engine.generate` gives it as objects.)"""
        body = {
            "text": prompt,
            "sampling_params": sampling_params,
            "return_logprob": return_logprob,
            "logprob_start_len": logprob_start_len,
            "top_logprobs_num": top_logprobs_num,
            "lora_path": lora_path,
        }
        given = {name: value for name, value in body.items() if value is not None}
        return json.dumps(wait_for(runner().loop, lambda: self.backend.native(given)))

    async def async_generate(self, prompt: str, sampling_params: Mapping[str, Any] | None = None) -> AsyncIterator[str]:
        """New text of one prompt, as it comes. Leaving the loop early aborts the generation."""
        body = {"text": prompt, "sampling_params": sampling_params or {}}
        async with aclosing(self.backend.native_stream(body)) as events:
            async for event in events:
                if event["text"]:
                    yield event["text"]

    def cache_prefix(self, prefix: str) -> None:
        """Bring a text into the prefix cache."""
        self.generate(prefix, {"max_new_tokens": 0})

    def flush_cache(self) -> None:
        wait_for(runner().loop, self.backend.flush_cache)

    def get_server_info(self) -> dict[str, Any]:
        return wait_for(runner().loop, self.backend.server_info)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _await_health(self, timeout: float) -> None:
        import httpx

        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            code = self._process.poll()
            if code is not None:
                self._process = None
                raise InternalError(
                    f"the server exited with code {code} before it was ready; its messages are above (log_level='info' shows more)"
                )
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=2.0).status_code == 200:
                    return
            time.sleep(POLL_SECONDS)
        self.shutdown()
        raise InternalError(
            f"the server was not ready within {timeout:g} s; raise launch_timeout=…, or start it yourself and use endpoint=…"
        )


def _launch(flags: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "ramet.launch_server", *command_line(flags)])


def command_line(flags: Mapping[str, Any]) -> list[str]:
    """Keywords as launch flags; None leaves one out."""
    words: list[str] = []
    for name, value in flags.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{option}", *map(str, values)]
    return words


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
