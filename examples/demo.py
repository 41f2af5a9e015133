"""The main job, start to finish: serve the embedded model, run two programs against the server, say what the cache saved, stop.

This is `make run`. It needs no arguments and no free port in particular.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

START_LIMIT = 120.0  # seconds; the first start also compiles the CPU kernels


def main() -> int:
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    print(f"Starting the server: ramet serve --port {port}", flush=True)
    began = time.perf_counter()
    server = subprocess.Popen([sys.executable, "-m", "ramet.launch_server", "--port", str(port), "--log-level", "warning"])
    try:
        wait_until_ready(server, endpoint)
        print(f"Ready after {time.perf_counter() - began:.1f} s\n", flush=True)
        quickstart = Path(__file__).parent / "quickstart.py"
        done = subprocess.run([sys.executable, str(quickstart), "--endpoint", endpoint])
        if done.returncode == 0:
            report(get(f"{endpoint}/server_info")["stats"])
        return done.returncode
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        print("Server stopped.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(server: subprocess.Popen[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}; its message is above")
        try:
            urllib.request.urlopen(f"{endpoint}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready after {START_LIMIT:.0f} s")


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def report(stats: dict[str, Any]) -> None:
    prompt, cached = stats["prompt_tokens_total"], stats["cached_tokens_total"]
    print(f"Server: {stats['generation_tokens_total']} tokens generated in {stats['num_steps_total']} steps;")
    print(f"        {prompt} prompt tokens, {cached} of them from the prefix cache ({cached / max(prompt, 1):.0%} hits).")


if __name__ == "__main__":
    sys.exit(main())
