"""How messages travel between front and worker: MessagePack over ZeroMQ between processes, queues inside one.

On the wire a message is two frames: the message's class name, and its fields in MessagePack. Token ids travel as plain MessagePack
integers: 1 to 5 bytes and about 20 ns each way per token, which is what any packed form costs once Python needs the integers.

`send` may be called from any thread; `receive` from one.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from ramet.runtime.engine.messages import (
    Abort,
    ExplainMiss,
    Fault,
    Flush,
    GetStats,
    Hint,
    LookAtCache,
    Message,
    Outputs,
    Ready,
    Reply,
    RunForward,
    RunSampling,
    Shutdown,
    Submit,
)

_MESSAGES: tuple[type[Message], ...] = (
    Submit,
    Abort,
    Hint,
    Flush,
    GetStats,
    LookAtCache,
    ExplainMiss,
    Shutdown,
    Ready,
    Outputs,
    Reply,
    Fault,
    RunForward,
    RunSampling,
)
_LINGER_MS = 10_000  # how long a closing end tries to deliver what it has sent
_LAST_WORDS_MS, _LAST_WORDS_TRIES = 50, 40  # a machine that stands still for seconds costs one try
_LEAVING_SECONDS, _LEAVING_TIMES = 0.05, 10  # so too here


class ChannelClosed(Exception):
    """The other end is gone, and all that it had sent has been received."""


class Channel(Protocol):
    def send(self, message: Message) -> None:
        """Never blocks. Sending to an end that is gone is not an error: only `receive` tells."""

    def receive(self, timeout: float | None) -> Sequence[Message]:
        """All messages that are there, in order; waits up to `timeout` seconds (None: for ever) for the first one.
        Raises `ChannelClosed`."""

    def close(self) -> None:
        """Idempotent."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message as it travels."""

    frames: list[bytes]

    @classmethod
    def of(cls, message: Message) -> Encoded:
        return cls([type(message).__name__.encode(), msgspec.msgpack.encode(message)])


@dataclass(frozen=True, slots=True)
class Codec:
    """Decoders keep buffers and belong to one thread each, as the channel's ends do."""

    decoders: dict[bytes, msgspec.msgpack.Decoder[Message]]

    @classmethod
    def create(cls) -> Codec:
        decoders = {kind.__name__.encode(): msgspec.msgpack.Decoder(kind) for kind in _MESSAGES}
        return cls(decoders)

    def decode(self, frames: list[bytes]) -> Message:
        kind, body = frames
        return self.decoders[kind].decode(body)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the two ends of a ZeroMQ channel meet: a private directory with one socket per direction."""

    directory: str

    @classmethod
    def create(cls) -> Address:
        return cls(tempfile.mkdtemp(prefix="ramet-"))

    @property
    def to_worker(self) -> str:
        return f"ipc://{self.directory}/to-worker"

    @property
    def to_front(self) -> str:
        return f"ipc://{self.directory}/to-front"

    def remove(self) -> None:
        directory = Path(self.directory)
        for socket in directory.glob("to-*"):
            socket.unlink(missing_ok=True)
        if directory.exists():
            directory.rmdir()


def say_last_words(channel: Channel, message: Message) -> None:
    """For a process that ends next without closing the channel, which only the thread that receives may: the message has time to leave."""
    channel.send(message)
    for _ in range(_LEAVING_TIMES):
        time.sleep(_LEAVING_SECONDS)


class ZmqChannel:
    """One end of a channel between processes. `lifeline` is a descriptor that becomes readable when the other process is gone."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], out: zmq.Socket[bytes], into: zmq.Socket[bytes], lifeline: int) -> None:
        self._context = context
        self._out = out
        self._in = into
        self._codec = Codec.create()
        self._send_lock = threading.Lock()
        self._closed = False
        self._lifeline = lifeline
        self._poller = zmq.Poller()
        self._poller.register(into, zmq.POLLIN)
        self._poller.register(lifeline, zmq.POLLIN)
        self._ends = into.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    @classmethod
    def front(cls, address: Address, lifeline: int) -> ZmqChannel:
        """The front binds, so that it owns the directory."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        out, into = _sockets(context)
        out.bind(address.to_worker)
        into.bind(address.to_front)
        return cls(context, out, into, lifeline)

    @classmethod
    def worker(cls, address: Address, lifeline: int) -> ZmqChannel:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        out, into = _sockets(context)
        out.connect(address.to_front)
        into.connect(address.to_worker)
        return cls(context, out, into, lifeline)

    def send(self, message: Message) -> None:
        """Never waits for a peer that is gone: what it would have been told no longer matters, its supervisor ends its requests."""
        self.send_encoded(Encoded.of(message))

    def send_encoded(self, message: Encoded) -> None:
        """`send`, for a message that several hear."""
        with self._send_lock:
            while not self._closed:
                try:
                    self._out.send_multipart(message.frames, zmq.NOBLOCK)
                    return
                except zmq.Again:
                    if not self._peer_comes():
                        return

    def _peer_comes(self) -> bool:
        """A socket without a peer cannot send: wait until one has connected, or is known to have ended."""
        poller = zmq.Poller()
        poller.register(self._out, zmq.POLLOUT)
        poller.register(self._lifeline, zmq.POLLIN)
        return any(which is self._out for which, _ in poller.poll())

    def receive(self, timeout: float | None) -> Sequence[Message]:
        ready = self._poller.poll(None if timeout is None else int(timeout * 1000))
        messages = self._take()
        if ready and not messages:  # only the lifeline woke us: what was sent last may still be on its way
            self._await_last_words()
            messages = self._take()
            if not messages:
                raise ChannelClosed
        return messages

    def _await_last_words(self) -> None:
        """Until some are there, or the connection's end is, which comes after all of them."""
        poller = zmq.Poller()
        for socket in (self._in, self._ends):
            poller.register(socket, zmq.POLLIN)
        for _ in range(_LAST_WORDS_TRIES):
            if poller.poll(_LAST_WORDS_MS):
                return

    def _take(self) -> list[Message]:
        messages: list[Message] = []
        while True:
            try:
                messages.append(self._codec.decode(self._in.recv_multipart(zmq.NOBLOCK)))
            except zmq.Again:
                return messages

    def close(self) -> None:
        with self._send_lock:
            if self._closed:
                return
            self._closed = True
            self._out.close(linger=_LINGER_MS)
        self._in.disable_monitor()
        self._ends.close(linger=0)
        self._in.close(linger=0)
        self._context.term()


class MemoryChannel:
    """One end of a channel inside one process: the same contract, the same objects, no copy."""

    def __init__(self, out: queue.SimpleQueue[Message | None], into: queue.SimpleQueue[Message | None]) -> None:
        self._out = out
        self._in = into
        self._closed = False
        self._peer_closed = False

    @classmethod
    def pair(cls) -> tuple[MemoryChannel, MemoryChannel]:
        """(front's end, worker's end)."""
        one: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        other: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        return cls(one, other), cls(other, one)

    def send(self, message: Message) -> None:
        if not self._closed:
            self._out.put(message)

    def receive(self, timeout: float | None) -> Sequence[Message]:
        messages: list[Message] = []
        wait_until = None if timeout is None else time.monotonic() + timeout
        while not self._peer_closed:
            message = self._next(None if messages else wait_until, wait=not messages)
            if message is None:
                break
            messages.append(message)
        if not messages and self._peer_closed:
            raise ChannelClosed
        return messages

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._out.put(None)

    def _next(self, wait_until: float | None, *, wait: bool) -> Message | None:
        """None: nothing came, or the other end closed (`_peer_closed` tells)."""
        remaining = None if wait_until is None else max(0.0, wait_until - time.monotonic())
        try:
            message = self._in.get(block=wait and remaining != 0.0, timeout=remaining or None)
        except queue.Empty:
            return None
        self._peer_closed = message is None
        return message


def _sockets(context: zmq.Context[zmq.Socket[bytes]]) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """(out, in), both without a limit on queued messages: the scheduler's own limits keep the queue short."""
    out: zmq.Socket[bytes] = context.socket(zmq.PUSH)
    into: zmq.Socket[bytes] = context.socket(zmq.PULL)
    for socket in (out, into):
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
    return out, into
