"""Both channels keep the same contract."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from ramet.runtime.cache_view import CacheNode, CacheView, Divergence, Lookup, MissReason
from ramet.runtime.engine.channel import Address, Channel, ChannelClosed, MemoryChannel, ZmqChannel
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
    Shutdown,
    Submit,
)
from ramet.runtime.plan import Capacity
from ramet.runtime.request import (
    EngineStats,
    Finish,
    FinishKind,
    GrammarSpec,
    KvHint,
    LogprobParams,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)
from tests.fakes import FAKE_MODEL
from tests.waiting import PATIENCE

REQUEST = Request(
    request_id="a#1",
    prompt_ids=tuple(range(50_000)),
    sampling=SamplingParams(stop=("x", "ü"), logit_bias={5: -1.5}, seed=3, timeout_s=1.5),
    seed=2**63 - 1,
    grammar=GrammarSpec("regex", "a+"),
    logprobs=LogprobParams(0, 2, (7,)),
    deadline=123.25,
)
OUTPUT = RequestOutput(
    "a#1",
    (1, 2),
    (TokenLogprob(1, -0.5, ((1, -0.5),), ((7, -9.0),)), TokenLogprob(2, None)),
    finish=Finish(FinishKind.STOP, matched="x"),
    scheduled_time=1.25,
)
LOOKUP = Lookup(
    request_id="rid",
    prompt_tokens=9,
    cached_tokens=2,
    possible_tokens=3,
    reason=MissReason.DIFFERS,
    position=3,
    prompt_ids=(1, 2),
    seen=(5,),
)
NODE = CacheNode(
    parent=-1, namespace="", num_tokens=4, subtree_tokens=9, hits=1, idle_seconds=0.5, num_pins=1, in_use=True, is_dead=False, head=(1,)
)
VIEW = CacheView(
    total_tokens=9,
    used_tokens=1,
    pinned_tokens=2,
    cached_tokens=3,
    prompt=4,
    hit=5,
    computed=6,
    least=7,
    evicted=8,
    evicted_pinned=9,
    duplicate=1,
    pins_revoked=2,
    num_nodes=3,
    nodes=(NODE,),
    divergences=(Divergence(count=2, again=1, computed_tokens=3, example=LOOKUP),),
)
MESSAGES: list[Message] = [
    Submit((REQUEST, REQUEST)),
    Abort(("a", "b")),
    Abort(None),
    Hint(KvHint(kind="pin", run_id="r", token_ids=(1, 2))),
    Flush(1),
    GetStats(2),
    LookAtCache(3, 10),
    ExplainMiss(4, "rid"),
    Reply(3, cache=VIEW, lookup=LOOKUP),
    Shutdown(),
    Ready(FAKE_MODEL, Capacity(1, 2, 3)),
    Outputs((OUTPUT, RequestOutput("b", finish=Finish(FinishKind.STOP, matched=7))), EngineStats(num_running=1)),
    Reply(1, done=False, stats=EngineStats()),
    Fault("OutOfMemory", "why", "param", "trace"),
]


class Ends:
    """Two ends, and how to cut the line between them."""

    def __init__(self, kind: str) -> None:
        if kind == "memory":
            self.front, self.worker = MemoryChannel.pair()
            self.close_front = self.front.close
            self.remove = lambda: None
            return
        address = Address.create()
        front_gone, self.front_alive = os.pipe()
        worker_gone, worker_alive = os.pipe()
        self.front: Channel = ZmqChannel.front(address, worker_gone)
        self.worker: Channel = ZmqChannel.worker(address, front_gone)
        self.cut_front = lambda: os.close(self.front_alive)
        self.close_front = lambda: (self.front.close(), self.cut_front())
        self.fds = (front_gone, worker_gone, worker_alive)
        self.remove = lambda: self.tidy(address)

    def tidy(self, address: Address) -> None:
        self.front.close()
        self.worker.close()
        address.remove()
        assert not Path(address.directory).exists()
        for descriptor in self.fds:
            os.close(descriptor)


@pytest.fixture(params=["memory", "zmq"])
def ends(request):
    made = Ends(request.param)
    yield made
    made.remove()


def receive(channel: Channel, count: int) -> list[Message]:
    found: list[Message] = []
    while len(found) < count:
        some = channel.receive(PATIENCE)
        assert some, "nothing came"
        found += some
    return found


def test_every_message_arrives_as_it_was_in_both_directions(ends):
    for one, other in ((ends.front, ends.worker), (ends.worker, ends.front)):
        for message in MESSAGES:
            one.send(message)
        assert receive(other, len(MESSAGES)) == MESSAGES


def test_receive_waits_no_longer_than_asked(ends):
    for timeout in (0.0, 0.05):
        took = []
        for _ in range(5):
            started = time.monotonic()
            assert not ends.worker.receive(timeout)
            took.append(time.monotonic() - started)
        assert timeout * 0.8 <= min(took) < timeout + 0.5


def test_receive_wakes_up(ends):
    threading.Timer(0.1, lambda: ends.front.send(Flush(1))).start()
    assert receive(ends.worker, 1) == [Flush(1)]


def test_what_was_sent_before_the_end_still_arrives(ends):
    for number in range(20):
        ends.front.send(Flush(number))
    ends.close_front()
    assert receive(ends.worker, 20) == [Flush(number) for number in range(20)]
    with pytest.raises(ChannelClosed):
        while True:
            ends.worker.receive(PATIENCE)


@pytest.mark.parametrize("ends", ["zmq"], indirect=True)
def test_last_words_are_waited_for_until_the_connection_ends(ends):
    """The process has ended, and what it sent is still on its way: an end with a reason, on a busy machine."""
    ends.cut_front()
    threading.Timer(0.3, lambda: ends.front.send(Flush(1))).start()
    assert ends.worker.receive(PATIENCE) == [Flush(1)]
    ends.front.close()
    with pytest.raises(ChannelClosed):
        ends.worker.receive(PATIENCE)


def test_many_threads_may_send(ends):
    threads = [threading.Thread(target=lambda: [ends.front.send(Flush(i)) for i in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(message.call_id for message in receive(ends.worker, 800))
    assert numbers == sorted(list(range(200)) * 4)


def test_sending_to_a_peer_that_is_gone_does_not_wait() -> None:
    """The worker died before its socket was seen, or between two messages: the front's loop must not stop for it."""
    ours, theirs = socket.socketpair()
    address = Address.create()
    front = ZmqChannel.front(address, ours.fileno())
    theirs.close()
    sender = threading.Thread(target=front.send, args=(Shutdown(),), daemon=True)
    sender.start()
    sender.join(PATIENCE)
    assert not sender.is_alive()
    front.close()
    address.remove()
    ours.close()
