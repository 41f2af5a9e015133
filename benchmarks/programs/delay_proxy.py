"""A TCP proxy that makes every byte arrive half a round trip later, in each direction: distance without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


@asynccontextmanager
async def delayed(url: str, round_trip_seconds: float) -> AsyncIterator[str]:
    """The address under which `url` is `round_trip_seconds` away; `url` itself where that is 0."""
    if not round_trip_seconds:
        yield url
        return
    target = urlsplit(url)
    tasks: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(target.hostname, target.port)
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(_pump(source, sink, round_trip_seconds / 2))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    deliver = asyncio.create_task(_deliver(arriving, sink))
    try:
        while data := await source.read(1 << 16):
            arriving.put_nowait((loop.time() + delay, data))
        arriving.put_nowait((loop.time() + delay, b""))
        await deliver
    except (ConnectionError, asyncio.CancelledError):
        pass
    finally:
        deliver.cancel()
        with suppress(ConnectionError, RuntimeError):
            sink.close()


async def _deliver(arriving: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        when, data = await arriving.get()
        await asyncio.sleep(max(0.0, when - loop.time()))
        if not data:
            return
        sink.write(data)
        await sink.drain()
