"""Fakes that several test folders share: a byte-level tokenizer, and an engine that needs neither a model nor torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ramet.program.backend import ChatFormat
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.channel import Channel, ChannelClosed, MemoryChannel
from ramet.runtime.engine.messages import Abort, Flush, GetStats, Outputs, Ready, Reply, Shutdown, Submit
from ramet.runtime.engine.worker_parts import TextParts
from ramet.runtime.executor.fake import FakeExecutor, FakeModel
from ramet.runtime.plan import Capacity, ModelInfo
from ramet.runtime.request import EngineStats, Finish, FinishKind, Request, RequestOutput, TokenLogprob

BOS, EOS, BEGIN, END = 256, 257, 258, 259
SPECIALS = {BOS: "<bos>", EOS: "<eos>", BEGIN: "<begin>", END: "<end>"}
VOCAB_SIZE = 260
CONTEXT_LEN = 4096


class ByteTokenizer:
    """Token i is byte i; four specials above."""

    vocab_size = VOCAB_SIZE
    eos_token_ids = (EOS,)
    special_ids = frozenset(SPECIALS)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = [BOS] if add_special_tokens else []
        while text:
            special = next((token for token, name in SPECIALS.items() if text.startswith(name)), None)
            ids += [special] if special is not None else text[0].encode("utf-8", "replace")
            text = text[len(SPECIALS[special]) :] if special is not None else text[1:]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = {} if skip_special_tokens else {token: name.encode() for token, name in SPECIALS.items()}
        return b"".join(bytes([token]) if token < 256 else shown.get(token, b"") for token in token_ids).decode("utf-8", "replace")

    def token_bytes(self, *, special: bool = False) -> tuple[bytes, ...]:
        return (*(bytes([value]) for value in range(256)), *(name.encode() if special else b"" for name in SPECIALS.values()))


class PlainChatTemplate:
    """`<begin>role\\ncontent<end>`, without Jinja."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        turns = [f"<begin>{message['role']}\n{message['content']}<end>\n" for message in messages]
        if continue_final_message:
            turns[-1] = turns[-1].removesuffix("<end>\n")
        return "".join(turns) + ("<begin>assistant\n" if add_generation_prompt and not continue_final_message else "")

    def chat_format(self) -> ChatFormat:
        roles = ("system", "user", "assistant", "tool")
        return ChatFormat({role: (f"<begin>{role}\n", "<end>\n") for role in roles}, bos="<bos>")


def fake_text(config: EngineConfig | None = None) -> TextParts:
    return TextParts(ByteTokenizer(), PlainChatTemplate(), {"temperature": 0.6})


Script = Callable[[Request], Sequence[int]]


def echo(request: Request) -> Sequence[int]:
    """The prompt, without specials, over and over until max_new_tokens."""
    told = [token for token in request.prompt_ids if token < 256] or [ord("x")]
    return (told * (request.sampling.max_new_tokens // len(told) + 1))[: request.sampling.max_new_tokens]


class ScriptedWorker:
    """A `WorkerHandle` that says what a script says, one token per request and tick: a worker without scheduler and executor."""

    process_id = None

    def __init__(self, script: Script = echo, *, tick: float = 0.001) -> None:
        self.script = script
        self.tick = tick
        self.running: dict[str, tuple[Request, list[int]]] = {}
        self.channel, theirs = MemoryChannel.pair()
        self._thread = threading.Thread(target=self._run, args=(theirs,), daemon=True)
        self._dead = threading.Event()
        self._thread.start()

    def kill(self) -> None:
        self._dead.set()

    def release(self) -> str:
        self._dead.set()
        self._thread.join()
        return "the script's end"

    def _run(self, channel: Channel) -> None:
        channel.send(Ready(FAKE_MODEL, Capacity(num_pages=8192, page_size=1, max_running=64)))
        try:
            while not self._dead.is_set():
                for message in channel.receive(self.tick if self.running else 0.05):
                    if isinstance(message, Shutdown):
                        return
                    self._handle(channel, message)
                if outputs := [self._step(request_id) for request_id in list(self.running)]:
                    channel.send(Outputs(tuple(outputs)))
        except ChannelClosed:
            pass
        finally:
            channel.close()

    def _handle(self, channel: Channel, message: object) -> None:
        match message:
            case Submit(requests):
                self.running |= {request.request_id: (request, list(self.script(request))) for request in requests}
            case Abort(ids):
                ended = [i for i in (list(self.running) if ids is None else ids) if self.running.pop(i, None)]
                channel.send(Outputs(tuple(RequestOutput(i, finish=Finish(FinishKind.ABORT, status=499)) for i in ended)))
            case Flush(call_id):
                channel.send(Reply(call_id, done=not self.running))
            case GetStats(call_id):
                channel.send(Reply(call_id, stats=EngineStats(num_running=len(self.running), total_tokens=8192)))

    def _step(self, request_id: str) -> RequestOutput:
        request, left = self.running[request_id]
        token = left.pop(0)
        finish = None
        if token in request.stop_token_ids:
            finish = Finish(FinishKind.STOP, matched=token)
        elif not left:
            finish = Finish(FinishKind.LENGTH)
        if finish:
            del self.running[request_id]
        return RequestOutput(
            request_id,
            (token,),
            logprobs=(TokenLogprob(token, -0.5, ((token, -0.5),)),) if request.logprobs else (),
            finish=finish,
            prompt_tokens=len(request.prompt_ids),
            scheduled_time=request.arrival_time,
        )


FAKE_MODEL = ModelInfo(
    name="fake",
    architecture="FakeForCausalLM",
    vocab_size=VOCAB_SIZE,
    context_len=CONTEXT_LEN,
    num_layers=1,
    num_kv_heads=1,
    head_dim=1,
    num_parameters=0,
    weight_bytes=0,
    kv_bytes_per_token=1,
    dtype="float32",
    eos_token_ids=(EOS,),
)


def scripted_engine(script: Script = echo, *, tick: float = 0.001, **options: Any) -> AsyncEngine:
    """An engine whose output is `script(request)`."""
    return AsyncEngine(EngineConfig.from_options(options), lambda: ScriptedWorker(script, tick=tick), fake_text)


def fake_executor(config: EngineConfig) -> FakeExecutor:
    """A hash instead of a model; sized by the same options as the real one. A worker process finds it by name."""
    size = config.memory.page_size
    num_pages = (config.memory.max_total_tokens or 8192) // size
    model = FakeModel(vocab_size=VOCAB_SIZE, context_len=CONTEXT_LEN, eos_token_ids=(EOS,))
    return FakeExecutor(Capacity(num_pages, size, config.schedule.max_running_requests or 64), model)


def slow_fake_executor(config: EngineConfig) -> FakeExecutor:
    """`fake_executor` with 5 ms per step: slow enough to be caught in the middle."""
    executor = fake_executor(config)
    executor._step_seconds = 0.005
    return executor


def unhurried_fake_executor(config: EngineConfig) -> FakeExecutor:
    """`fake_executor` with 40 ms per step: whoever reads along gets its output in pieces on a busy machine too."""
    executor = fake_executor(config)
    executor._step_seconds = 0.04
    return executor


def fake_engine(*, slow: bool = False, **options: Any) -> AsyncEngine:
    """An engine on a thread over `FakeExecutor`, ready for use; `options` are launch options. Its text is noise, but always the same
    noise (`expected_output`), and constraints hold. For text of your choice take `scripted_engine`.
    Close it with `close_now()` or `await close()`."""
    config = EngineConfig.from_options(options)
    factory = slow_fake_executor if slow else fake_executor
    return AsyncEngine.start_now(config, worker="thread", executor_factory=factory, text_factory=fake_text)
