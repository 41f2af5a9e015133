"""What no engine can beat on this machine: the bytes that have to be read and the multiplications that have to be done.

A phase takes at least the longer of the two, as if they overlapped perfectly and nothing else cost anything. The rates are the best that
were measured on the two-core AVX2 machine of the tables (26–32 GB/s of reads; 100 GFLOP/s of float32 FMA and 190 GMAC/s of int8 maddubs per
core); on another machine give its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ramet.runtime.gguf_file import open_gguf

_KV_NUMBER_BYTES = 2


@dataclass(frozen=True, slots=True)
class Machine:
    cores: int
    read_gb_s: float = 32.0
    int8_gmac_s: float = 190.0  # per core
    float_gflop_s: float = 100.0  # per core


@dataclass(frozen=True, slots=True)
class ModelCost:
    """`weight_bytes`: all that a step reads. `block_macs`: of the layers, a token; `head_macs`: of the vocabulary, an output token.
    `attention_macs`: a query token and a token that it sees (scores and values, all layers)."""

    weight_bytes: int
    block_macs: int
    head_macs: int
    attention_macs: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Work:
    """Of one phase or of several that follow each other: seconds at least, and how many of them reads alone would take."""

    seconds: float
    read_seconds: float

    @property
    def bound(self) -> str:
        return "reads" if self.read_seconds > 0.5 * self.seconds else "multiplications"


def model_cost(path: Path) -> ModelCost:
    """From a GGUF file of the llama family."""
    file = open_gguf(path)
    metadata, architecture = file.metadata, file.metadata["general.architecture"]
    layers, heads, kv_heads = (
        int(metadata[f"{architecture}.{key}"]) for key in ("block_count", "attention.head_count", "attention.head_count_kv")
    )
    head_dim = int(metadata[f"{architecture}.embedding_length"]) // heads
    matrices = {name: tensor for name, tensor in file.tensors.items() if len(tensor.shape) == 2}
    return ModelCost(
        weight_bytes=sum(tensor.blocks.nbytes for tensor in file.tensors.values()),
        block_macs=sum(math.prod(tensor.shape) for name, tensor in matrices.items() if name.startswith("blk.")),
        head_macs=math.prod(matrices.get("output.weight", matrices["token_embd.weight"]).shape),
        attention_macs=2 * layers * heads * head_dim,
        kv_bytes=2 * layers * kv_heads * head_dim * _KV_NUMBER_BYTES,
    )


@dataclass(frozen=True, slots=True)
class Floor:
    machine: Machine
    model: ModelCost

    def step(self, tokens: int, outputs: int, seen: int, read: int) -> Work:
        """One pass over the weights: `tokens` computed, of which `outputs` get logits; `seen`: (query, key) pairs; `read`: tokens of KV
        fetched from memory."""
        cores, model = self.machine.cores, self.model
        reads = (model.weight_bytes + read * model.kv_bytes) / (self.machine.read_gb_s * 1e9)
        linear = (tokens * model.block_macs + outputs * model.head_macs) / (cores * self.machine.int8_gmac_s * 1e9)
        attention = 2 * seen * model.attention_macs / (cores * self.machine.float_gflop_s * 1e9)
        return Work(max(reads, linear + attention), reads)

    def prefill(self, tokens: int, cached: int = 0, outputs: int = 1) -> Work:
        """Prompt tokens after `cached` ones, in one pass."""
        return self.step(tokens, outputs, tokens * cached + tokens * (tokens + 1) // 2, cached)

    def decode(self, streams: int, context: int, steps: int, shared: int = 0) -> Work:
        """`steps` tokens for each of `streams` after `context` tokens, of which the first ones are read once for all: `shared` fewer."""
        contexts = [context + step for step in range(steps)]
        return total(self.step(streams, streams, streams * each, streams * each - shared) for each in contexts)


def total(works: Iterable[Work]) -> Work:
    listed = list(works)
    return Work(sum(work.seconds for work in listed), sum(work.read_seconds for work in listed))
