"""llama.cpp with continuous batching, as its own C++ server schedules: slots, decode tokens first, then prompts up to the batch size.

llama-cpp-python's high-level class runs one sequence at a time, which would measure the binding and not the library; so the loop below
drives the low-level calls. A request goes to a slot that holds the longest prefix of it. More than that server does: where that slot is
busy, its KV is copied, and a request waits while another computes a prefix that both have. There is one context for each of a few shapes,
as one would start a server with `-np 1`, `-np 8` or `-np 32`; the narrowest that fits is used.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf  # type: ignore[import-not-found]

from benchmarks.cpu.adapters.line_server import Prompts, serve

SHAPES = ((1, 4096), (8, 768), (32, 768))
"""(slots, tokens of a slot)"""
BATCH_TOKENS = 2048  # llama.cpp's defaults of n_batch and n_ubatch
MICRO_BATCH_TOKENS = 512


class LlamaCppSlots:
    def __init__(self, model_path: str) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(model_path.encode(), llama_cpp.llama_model_default_params())
        self._contexts: dict[tuple[int, int], SlotContext] = {}
        self.about: Mapping[str, Any] = {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "options": f"{os.cpu_count()} threads, n_batch {BATCH_TOKENS}, n_ubatch {MICRO_BATCH_TOKENS}, slots × tokens {SHAPES}",
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def generate(self, prompts: Prompts, limit: int, schema: Mapping[str, Any] | None) -> list[list[int]]:
        needed = max(map(len, prompts)) + limit
        fitting = [shape for shape in SHAPES if shape[1] >= needed]
        if not fitting:
            raise ValueError(f"{needed} tokens fit in no slot of {SHAPES}")
        shape = next((shape for shape in fitting if shape[0] >= len(prompts)), fitting[-1])
        if shape not in self._contexts:
            self._contexts[shape] = SlotContext(self._model, *shape)
        grammar = None if schema is None else json_schema_to_gbnf(json.dumps(schema)).encode()
        return self._contexts[shape].run([Stream(list(prompt), limit, grammar) for prompt in prompts])


@dataclass(slots=True)
class Stream:
    """One request. `grammar`: GBNF, or None for free text of exactly `limit` tokens."""

    prompt: list[int]
    limit: int
    grammar: bytes | None
    output: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Slot:
    """`held`: the tokens whose KV the slot has. `due`: those of its stream to compute next; the last of them brings logits."""

    index: int
    held: list[int] = field(default_factory=list)
    due: list[int] = field(default_factory=list)
    stream: Stream | None = None
    sampler: Any = None
    used_at: int = 0


class SlotContext:
    """One llama.cpp context whose sequences are slots."""

    def __init__(self, model: Any, num_slots: int, slot_tokens: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_slots * slot_tokens
        params.n_seq_max = num_slots
        params.kv_unified = False  # a row attends over its own slot's cells, not over everyone's
        params.n_batch, params.n_ubatch = BATCH_TOKENS, MICRO_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = os.cpu_count() or 1
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._slots = [Slot(index) for index in range(num_slots)]
        self._clock = 0

    def run(self, streams: list[Stream]) -> list[list[int]]:
        waiting = list(streams)
        while waiting or any(slot.stream for slot in self._slots):
            for stream in list(waiting):
                if any(slot.stream is None for slot in self._slots) and not self._soon_cached(stream):
                    waiting.remove(stream)
                    self._admit(stream)
            for slot, row in self._step():
                self._append(slot, self._pick(slot, row))
        return [stream.output for stream in streams]

    def _soon_cached(self, stream: Stream) -> bool:
        """Whether a slot is computing a longer prefix of it than any has: to wait is cheaper than to compute it twice."""
        now = max(_common(slot.held, stream.prompt) for slot in self._slots)
        return any(slot.stream and _common(slot.held + slot.due, stream.prompt) > now for slot in self._slots)

    def _admit(self, stream: Stream) -> None:
        """Into the idle slot with the longest common prefix, or into the one idle for longest, with a busy slot's prefix copied."""
        self._clock += 1
        source = max(self._slots, key=lambda slot: (_common(slot.held, stream.prompt), slot.stream is None))
        slot = source
        if source.stream is not None or not _common(source.held, stream.prompt):
            slot = min((slot for slot in self._slots if slot.stream is None), key=lambda slot: slot.used_at)
        keep = min(_common(source.held, stream.prompt), len(stream.prompt) - 1)  # the last token has to bring logits
        if slot is not source:
            llama_cpp.llama_memory_seq_rm(self._memory, slot.index, -1, -1)
            if keep:
                llama_cpp.llama_memory_seq_cp(self._memory, source.index, slot.index, -1, -1)
        llama_cpp.llama_memory_seq_rm(self._memory, slot.index, keep, -1)
        slot.held, slot.due = stream.prompt[:keep], stream.prompt[keep:]
        slot.stream, slot.used_at = stream, self._clock
        slot.sampler = stream.grammar and llama_cpp.llama_sampler_init_grammar(self._vocab, stream.grammar, b"root")

    def _step(self) -> list[tuple[Slot, int]]:
        """One decode call: single tokens first, prompts while there is room. Who got logits, and in which row."""
        batch, rows, size = self._batch, list[tuple[Slot, int]](), 0
        for slot in sorted((slot for slot in self._slots if slot.due), key=lambda slot: len(slot.due)):
            taken, slot.due = slot.due[: BATCH_TOKENS - size], slot.due[BATCH_TOKENS - size :]
            for token in taken:
                batch.token[size], batch.pos[size] = token, len(slot.held)
                batch.n_seq_id[size], batch.seq_id[size][0], batch.logits[size] = 1, slot.index, 0
                slot.held.append(token)
                size += 1
            if taken and not slot.due:
                batch.logits[size - 1] = 1
                rows.append((slot, size - 1))
        batch.n_tokens = size
        if (code := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode gave {code} for {size} tokens")
        return rows

    def _pick(self, slot: Slot, row: int) -> int:
        """The best token; with a grammar that forbids it, the best that it allows (as llama.cpp's own sampler tries them)."""
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, row), shape=(self._num_tokens,))
        best = int(logits.argmax())
        if slot.sampler and not self._allowed(slot, np.array([best]), logits)[0]:
            allowed = self._allowed(slot, np.arange(self._num_tokens), logits)
            best = int(np.where(allowed, logits, -np.inf).argmax())
        if slot.sampler:
            llama_cpp.llama_sampler_accept(slot.sampler, best)
        return best

    def _allowed(self, slot: Slot, tokens: Any, logits: Any) -> Any:
        candidates = np.zeros(len(tokens), dtype=np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True))
        candidates["id"], candidates["logit"] = tokens, logits[tokens]
        data = candidates.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(slot.sampler, ctypes.byref(array))
        return np.isfinite(candidates["logit"])

    def _append(self, slot: Slot, token: int) -> None:
        assert slot.stream is not None
        stream = slot.stream
        ended = stream.grammar is not None and llama_cpp.llama_vocab_is_eog(self._vocab, token)
        if not ended:
            stream.output.append(token)
        if not ended and len(stream.output) < stream.limit:
            slot.due = [token]
            return
        if slot.sampler:
            llama_cpp.llama_sampler_free(slot.sampler)
        slot.stream, slot.sampler = None, None


def _common(held: list[int], prompt: list[int]) -> int:
    """How many first tokens are the same."""
    return next((at for at, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), min(len(held), len(prompt)))


if __name__ == "__main__":
    serve(LlamaCppSlots)
