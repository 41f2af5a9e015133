"""How often a program goes to the server and back: once in all, and once for each host call; on connections that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

import ramet as sgl


def note(text: str) -> str:
    return text.upper()


@sgl.function
def conversation(s: Any, topic: str) -> Any:
    s += sgl.system("Be brief.")
    for part in range(4):
        s += sgl.user(f"{topic}, part {part}") + sgl.assistant(sgl.gen("reply", max_tokens=4))
    return s["reply"]


@sgl.function
def with_host_calls(s: Any, topic: str) -> Any:
    for _ in range(3):
        s += topic + sgl.gen("word", max_tokens=4)
        s += note(s["word"])
    return s["word"]


@dataclass
class Traffic:
    connections: int = 0
    requests: int = 0


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[tuple[str, Traffic]]:
    """An address that leads to `url`, and what passes through it."""
    target, traffic = urlsplit(url), Traffic()
    tasks: list[asyncio.Task[None]] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 20):
                traffic.requests += counted * sum(data.count(b"%b /" % verb) for verb in (b"GET", b"PUT", b"POST", b"DELETE"))
                sink.write(data)
        sink.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        traffic.connections += 1
        there_reader, there_writer = await asyncio.open_connection(target.hostname, target.port)
        tasks.append(asyncio.create_task(pump(reader, there_writer, counted=True)))
        tasks.append(asyncio.create_task(pump(there_reader, writer, counted=False)))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", traffic
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("program", "num_calls"), [(conversation, 0), (with_host_calls, 3)])
async def test_one_request_for_a_run_and_one_for_each_host_call(url: str, program: sgl.Function, num_calls: int) -> None:
    async with watched(url) as (address, traffic):
        endpoint = sgl.RuntimeEndpoint(address)
        await program.arun("rivers", backend=endpoint, mode="compiled")
        assert traffic.requests == 2 + num_calls  # the model's chat format, asked for meanwhile; the run, which brings its program
        before = traffic.requests
        for topic in ("lakes", "seas"):
            await program.arun(topic, backend=endpoint, mode="compiled")
        assert traffic.requests - before == 2 * (1 + num_calls)
        assert traffic.connections == 2
        await endpoint.close()


async def test_a_batch_is_one_request(url: str) -> None:
    async with watched(url) as (address, traffic):
        endpoint = sgl.RuntimeEndpoint(address)
        await conversation.arun_batch([{"topic": f"river {index}"} for index in range(20)], backend=endpoint)
        assert traffic.requests == 2
        await endpoint.close()


async def test_a_program_that_the_server_has_forgotten_is_brought_again(url: str) -> None:
    endpoint = sgl.RuntimeEndpoint(url)
    strange = conversation.without_passes("merge_text")
    endpoint.programs.known.add(strange.compilation.get().digest)  # as it was before the server started again
    state = await strange.arun("rivers", backend=endpoint, mode="compiled")
    assert state["reply"] and state.run_id
    await endpoint.close()
