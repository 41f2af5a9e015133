"""The CPU's inputs of a step: the short way to those of decode steps gives what `build` gives, and that what torch's tables give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ramet.runtime.executor.cpu_inputs import CpuSlotTables
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.quantized_weights import load_quantized
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES, CpuKvPool, allocate_cpu_pool
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.decoder_step import DecoderStep, StepBatch
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.plan import PENDING_TOKEN, Capacity, PlanRow
from tests.runtime.models.test_decoder_step import checkpoint

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)

NUM_TOKENS, PROMPT, STEPS = 4096, (5, 150, 33, 129), 6
HALF = KV_TYPES["float16"]
Floats = npt.NDArray[np.float32]


@pytest.mark.parametrize("page_size", [1, 16])
def test_decode_steps_of_both_ways_and_of_torch_are_the_same(page_size: int) -> None:
    capacity = Capacity(NUM_TOKENS // page_size, page_size, 8)
    random = np.random.default_rng(0)
    free = list(random.permutation(capacity.num_pages))

    def row(slot: int, tokens: tuple[int, ...], start: int) -> PlanRow:
        first = -(-start // page_size)
        pages = tuple(int(free.pop()) for _ in range(first, -(-(start + len(tokens)) // page_size)))
        return PlanRow(f"r{slot}", slot, tokens, start, first, pages, bool(slot % 3))

    short, long, tensors = CpuSlotTables(capacity, 2048), CpuSlotTables(capacity, 2048), SlotTables(capacity, 2048, torch.device("cpu"))
    prompts = [row(slot, tuple(int(t) for t in random.integers(0, 200, n)), 0) for slot, n in zip((6, 0, 4, 2), PROMPT, strict=True)]
    assert_same(long.build(prompts)[0], prompts, tensors)
    short.build(prompts)
    for last in (short.last_token, long.last_token):
        last[:] = np.arange(70, 78)
    tensors.last_token[:] = torch.arange(70, 78)
    for i in range(STEPS):
        rows = [row(prompt.slot, (PENDING_TOKEN if i % 2 else 11 + i,), prompt.end + i) for prompt in prompts[: 4 - i % 3]]
        rows += [row(prompt.slot, (3,), prompt.end + i) for prompt in prompts[4 - i % 3 :]]
        every = [range(1)] * len(rows)
        batch, num_wanted = long.build(rows, every)
        decode = short.build_decode(rows)
        assert num_wanted == len(rows)
        for name in StepBatch.__slots__:
            wanted = getattr(batch, name)
            assert np.array_equal(getattr(decode, name), wanted[:num_wanted] if name == "logit_indices" else wanted), name
        assert_same(batch, rows, tensors, every)


def assert_same(found: StepBatch, rows: list[PlanRow], tensors: SlotTables, wanted: list[range] | None = None) -> None:
    expected = tensors.build(rows, wanted).batch
    pairs = [(found.token_ids, expected.token_ids), (found.positions, expected.positions), (found.places, expected.kv_slots)]
    pairs += [(found.query_starts, expected.query_starts), (found.kv_lens, expected.kv_lens), (found.logit_indices, expected.logit_indices)]
    for ours, theirs in pairs:
        assert ours.tolist() == theirs.tolist()
        assert ours.dtype == theirs.numpy().dtype and ours.flags.c_contiguous
    table = found.page_tables[found.lines][:, : expected.page_table.shape[1]]
    assert table.tolist() == expected.page_table.tolist()


@pytest.mark.parametrize("shared", [0, 100, 128, 400])
def test_rows_that_share_pages_get_what_each_gets_alone(tmp_path: Path, shared: int) -> None:
    """Units of attention that serve several rows at once change no number."""
    files = checkpoint(tmp_path, "llama")
    spec = model_spec(files)
    step = load_quantized(files, spec, bits=8, threads=2, kv_type=HALF).step
    tables, random = CpuSlotTables(Capacity(NUM_TOKENS, 1, 12), 2048), np.random.default_rng(1)
    pool = empty_pool(spec)
    for layer in (*pool.keys, *pool.values):
        layer[:] = random.standard_normal(layer.shape)
    lengths = [shared + own for own in (1, 3, 50, 127, 128, 129, 300, 5, 6, 7, 8, 260)]
    for slot, length in enumerate(lengths):
        own = 400 + 300 * slot + np.arange(length - shared)
        tables.pages[slot, :length] = np.concatenate([np.arange(shared), own])
    rows = [PlanRow(f"r{slot}", slot, (slot + 1,), length - 1, 0, (), True) for slot, length in enumerate(lengths)]
    alone = np.concatenate([logits_of(step, tables.build_decode([row]), pool, spec) for row in rows])
    assert np.array_equal(logits_of(step, tables.build_decode(rows), pool, spec), alone)


@pytest.mark.parametrize("cuts", [(300,), (1, 299), (33, 67, 100, 100), (128, 128, 44), (250, *(1,) * 50)])
def test_deterministic_steps_do_not_depend_on_how_a_sequence_is_cut(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Keys, values and logits, to the last bit: against a sequence computed token by token."""
    files = checkpoint(tmp_path, "llama")
    spec = model_spec(files)
    step = load_quantized(files, spec, bits=8, threads=2, kv_type=HALF, deterministic=True).step
    tokens = tuple(int(t) for t in np.random.default_rng(1).integers(0, 200, 300))
    found, expected = (computed(step, spec, tokens, c) for c in (cuts, (1,) * 300))
    assert np.array_equal(found[0], expected[0])
    for ours, theirs in zip((*found[1].keys, *found[1].values), (*expected[1].keys, *expected[1].values), strict=True):
        assert np.array_equal(ours[: len(tokens)], theirs[: len(tokens)])


def computed(step: DecoderStep, spec: ModelSpec, tokens: tuple[int, ...], cuts: tuple[int, ...]) -> tuple[Floats, CpuKvPool]:
    """The last logits, and all keys and values, of a sequence that comes in pieces."""
    tables, pool = CpuSlotTables(Capacity(NUM_TOKENS, 1, 2), 2048), empty_pool(spec)
    start, logits = 0, np.empty(0, np.float32)
    for cut in cuts:
        row = PlanRow("r", 1, tokens[start : start + cut], start, start, tuple(range(start, start + cut)), True)
        logits = logits_of(step, tables.build([row])[0], pool, spec)
        start += cut
    return logits, pool


def logits_of(step: DecoderStep, batch: StepBatch, pool: CpuKvPool, spec: ModelSpec) -> Floats:
    logits = np.empty((len(batch.logit_indices), spec.vocab_size), np.float32)
    step.forward(batch, pool, logits)
    return logits


def empty_pool(spec: ModelSpec) -> CpuKvPool:
    return allocate_cpu_pool(spec.num_layers, (NUM_TOKENS, spec.num_kv_heads, spec.head_dim), 1, HALF)
