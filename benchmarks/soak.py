"""Many streaming clients for a long time, with random aborts and disconnects, against a real server on the embedded model.

    python -m benchmarks.soak                       # 64 clients, 10 minutes
    python -m benchmarks.soak --minutes 0.5 --clients 16

Fails if a client sees an error that it did not cause, if pages stay in use afterwards, or if the server's memory keeps growing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import httpx
import psutil

GROWTH_LIMIT = 0.05
"""Share by which memory may grow between one third of the run and its end."""


class Soak:
    def __init__(self, url: str, seed: int) -> None:
        self.url, self.random = url, random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.errors: list[str] = []

    async def client(self, http: httpx.AsyncClient, index: int, deadline: float) -> None:
        number = 0
        while time.monotonic() < deadline:
            number += 1
            await self.request(http, f"soak-{index}-{number}")

    async def request(self, http: httpx.AsyncClient, rid: str) -> None:
        body, leave_after, abort_after = self.plan(rid)
        events, finish = 0, None
        try:
            async with http.stream("POST", f"{self.url}/generate", json=body) as response:
                if response.status_code != 200:
                    self.errors.append(f"{rid}: HTTP {response.status_code} {(await response.aread())[:200]!r}")
                    return
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.errors.append(f"{rid}: {line[:200]}")
                        return
                    events, finish = events + 1, event["meta_info"]["finish_reason"]
                    if events == leave_after:
                        self.outcomes["disconnected"] += 1
                        return
                    if events == abort_after:
                        await http.post(f"{self.url}/abort_request", json={"rid": rid})
        except httpx.HTTPError as error:
            self.errors.append(f"{rid}: {error!r}")
            return
        kind = finish["type"] if finish else "no finish"
        if kind not in ("stop", "length") and not (kind == "abort" and abort_after is not None):
            self.errors.append(f"{rid}: ended with {finish}")
        self.outcomes[kind] += 1

    def plan(self, rid: str) -> tuple[dict[str, Any], int | None, int | None]:
        """A request, and after how many events its client leaves or aborts it."""
        draw = self.random
        words = " ".join(draw.choice(("alpha", "beta", "gamma", "delta", "epsilon")) for _ in range(draw.randint(1, 120)))
        sampling = {"max_new_tokens": draw.randint(1, 64), "temperature": draw.choice((0, 0.8, 1.5)), "ignore_eos": draw.random() < 0.3}
        if draw.random() < 0.2:
            sampling["regex"] = r"\{\"id\": \d{1,4}, \"ok\": (true|false)\}"
        text = draw.choice(("You are a clerk. ", "Translate: ", "")) + words
        body = {"text": text, "rid": rid, "stream": True, "incremental": True, "sampling_params": sampling}
        fate = draw.random()
        return body, draw.randint(1, 20) if fate < 0.15 else None, draw.randint(1, 20) if 0.15 <= fate < 0.3 else None


async def run(url: str, clients: int, minutes: float, server: psutil.Process) -> tuple[Soak, list[int]]:
    soak, memory = Soak(url, seed=11), []
    deadline = time.monotonic() + minutes * 60

    async def watch() -> None:
        while time.monotonic() < deadline:
            await asyncio.sleep(minutes * 60 / 30)
            memory.append(resident_bytes(server))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as http:
        await asyncio.gather(watch(), *(soak.client(http, i, deadline) for i in range(clients)))
    return soak, memory


def resident_bytes(process: psutil.Process) -> int:
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


def pages_in_use(url: str) -> int:
    """Tokens still held once the server is idle; waits a few seconds for the last aborts."""
    for _ in range(50):
        stats = httpx.get(f"{url}/server_info", timeout=30).json()["stats"]
        if stats["num_running"] == stats["num_waiting"] == stats["used_tokens"] == 0:
            return int(stats["total_tokens"] - stats["available_tokens"] - stats["evictable_tokens"])
        time.sleep(0.2)
    return int(stats["used_tokens"])


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--log-level", "warning", "--max-total-tokens", "6000"]
    server = subprocess.Popen([sys.executable, "-m", "ramet.launch_server", "--port", str(port), *options])
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return server, url
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("the server was not ready in time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    server, url = start_server()
    try:
        soak, memory = asyncio.run(run(url, arguments.clients, arguments.minutes, psutil.Process(server.pid)))
        left = pages_in_use(url)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    early, late = memory[len(memory) // 3], memory[-1]
    print(f"{arguments.clients} clients, {arguments.minutes:g} minutes: {dict(soak.outcomes)}")
    print(f"errors: {len(soak.errors)}; tokens still in use: {left}")
    print(f"memory: {early / 2**20:.0f} MiB after a third of the time, {late / 2**20:.0f} MiB at the end")
    print("\n".join(soak.errors[:20]))
    return 1 if soak.errors or left or late > early * (1 + GROWTH_LIMIT) else 0


if __name__ == "__main__":
    sys.exit(main())
