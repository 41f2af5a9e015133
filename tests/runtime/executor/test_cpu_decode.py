"""The short way through decode steps on the CPU against the step over `SlotTables.build`: the same numbers, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ramet.runtime.attention.attention_backend import KVPool
from ramet.runtime.executor.cpu_choice import CpuChoice
from ramet.runtime.executor.cpu_decode import CpuDecode
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.quantized_weights import load_quantized
from ramet.runtime.kernels import cpu_library
from ramet.runtime.models.decoder_step import DecoderStep
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.plan import PENDING_TOKEN, Capacity, PlanRow
from tests.runtime.models.test_decoder_step import checkpoint

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)

NUM_TOKENS, PROMPT, STEPS = 4096, (5, 150, 33, 129), 6


@pytest.mark.parametrize("page_size", [1, 16])
def test_equals_the_step_over_built_inputs(tmp_path: Path, page_size: int) -> None:
    files = checkpoint(tmp_path, "llama")
    spec = model_spec(files)
    step = load_quantized(files, spec, bits=8, threads=2, kv_dtype=torch.float16).step
    capacity = Capacity(NUM_TOKENS // page_size, page_size, 8)
    random = np.random.default_rng(0)
    free = list(random.permutation(capacity.num_pages))

    def row(slot: int, tokens: tuple[int, ...], start: int) -> PlanRow:
        first = -(-start // page_size)
        pages = tuple(int(free.pop()) for _ in range(first, -(-(start + len(tokens)) // page_size)))
        return PlanRow(f"r{slot}", slot, tokens, start, first, pages, True)

    shape = (NUM_TOKENS, spec.num_kv_heads, spec.head_dim)
    pools = [KVPool(empty(shape, spec.num_layers), empty(shape, spec.num_layers), page_size) for _ in range(2)]
    tables = [SlotTables(capacity, 2048, torch.device("cpu")) for _ in range(2)]
    short = CpuDecode(step, pools[1], tables[1], CpuChoice(step.context))
    prompts = [row(slot, tuple(int(t) for t in random.integers(0, 200, n)), 0) for slot, n in zip((6, 0, 3, 2), PROMPT, strict=True)]
    for table, pool in zip(tables, pools, strict=True):
        step.forward(table.build(prompts).batch, pool)
        table.last_token.fill_(7)
    for i in range(STEPS):
        rows = [row(prompt.slot, (PENDING_TOKEN if i % 2 else 11 + i,), prompt.end + i) for prompt in prompts[: 4 - i % 3]]
        rows += [row(prompt.slot, (3,), prompt.end + i) for prompt in prompts[4 - i % 3 :]]
        assert short.covers(rows)
        expected = step.forward(tables[0].build(rows).batch, pools[0])
        tables[1].add_pages(rows)
        result = short.run(rows, ())
        assert torch.equal(result.logits, expected)
        assert result.slots.tolist() == [r.slot for r in rows]
        assert torch.equal(result.tokens, expected.argmax(-1))


def empty(shape: tuple[int, ...], num_layers: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(shape, dtype=torch.float16) for _ in range(num_layers))


def test_rows_of_several_tokens_take_the_long_way(tmp_path: Path) -> None:
    files = checkpoint(tmp_path, "llama")
    step = load_quantized(files, model_spec(files), bits=8, threads=1, kv_dtype=torch.float16).step
    tables = SlotTables(Capacity(64, 1, 2), 64, torch.device("cpu"))
    pool = KVPool((), (), 1)
    assert not CpuDecode(step, pool, tables, CpuChoice(step.context)).covers([PlanRow("r", 0, (1, 2), 0, 0, (0, 1), True)])


@pytest.mark.parametrize("shared", [0, 100, 128, 400])
def test_rows_that_share_pages_get_what_each_gets_alone(tmp_path: Path, shared: int) -> None:
    """Units of attention that serve several rows at once change no number."""
    files = checkpoint(tmp_path, "llama")
    spec = model_spec(files)
    step = load_quantized(files, spec, bits=8, threads=2, kv_dtype=torch.float16).step
    tables = SlotTables(Capacity(NUM_TOKENS, 1, 12), 2048, torch.device("cpu"))
    shape = (NUM_TOKENS, spec.num_kv_heads, spec.head_dim)
    pool = KVPool(empty(shape, spec.num_layers), empty(shape, spec.num_layers), 1)
    for tensor in (*pool.keys, *pool.values):
        tensor.normal_(generator=torch.Generator().manual_seed(1))
    lengths = [shared + own for own in (1, 3, 50, 127, 128, 129, 300, 5, 6, 7, 8, 260)]
    for slot, length in enumerate(lengths):
        own = 400 + 300 * slot + torch.arange(length - shared)
        tables.pages[slot, :length] = torch.cat([torch.arange(shared), own]).int()
    rows = [PlanRow(f"r{slot}", slot, (slot + 1,), length - 1, 0, (), True) for slot, length in enumerate(lengths)]
    decode = CpuDecode(step, pool, tables, CpuChoice(step.context))
    alone = torch.cat([decode.run([row], ()).logits.clone() for row in rows])
    assert torch.equal(decode.run(rows, ()).logits, alone)


@pytest.mark.parametrize("cuts", [(300,), (1, 299), (33, 67, 100, 100), (128, 128, 44), (250, *(1,) * 50)])
def test_deterministic_steps_do_not_depend_on_how_a_sequence_is_cut(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Keys, values and logits, to the last bit: against a sequence computed token by token."""
    files = checkpoint(tmp_path, "llama")
    spec = model_spec(files)
    step = load_quantized(files, spec, bits=8, threads=2, kv_dtype=torch.float16, deterministic=True).step
    tokens = tuple(int(t) for t in np.random.default_rng(1).integers(0, 200, 300))
    found, expected = (
        computed(step, spec.num_layers, (NUM_TOKENS, spec.num_kv_heads, spec.head_dim), tokens, c) for c in (cuts, (1,) * 300)
    )
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def computed(
    step: DecoderStep, num_layers: int, shape: tuple[int, ...], tokens: tuple[int, ...], cuts: tuple[int, ...]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The last logits, and all keys and values, of a sequence that comes in pieces."""
    tables = SlotTables(Capacity(NUM_TOKENS, 1, 2), 2048, torch.device("cpu"))
    pool = KVPool(empty(shape, num_layers), empty(shape, num_layers), 1)
    start, logits = 0, torch.empty(0)
    for cut in cuts:
        row = PlanRow("r", 1, tokens[start : start + cut], start, start, tuple(range(start, start + cut)), True)
        logits = step.forward(tables.build([row]).batch, pool)
        start += cut
    return logits, [tensor[: len(tokens)].clone() for tensor in (*pool.keys, *pool.values)]
