"""The fused step on a CUDA device against the plain transformer: shapes, families, page sizes, shared prefixes, and each kernel alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool, SharedPrefix
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.model_spec import LayerSpec, ModelSpec, RopeSpec
from ramet.runtime.models.transformer import Transformer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda", 0)
POOL_TOKENS = 4608
PLAIN = ModelSpec(
    architecture="Test", vocab_size=512, hidden_size=256, intermediate_size=384, num_heads=8, num_kv_heads=2, head_dim=64,
    layers=(LayerSpec(RopeSpec(10000.0, 64)), LayerSpec(RopeSpec(10000.0, 64), window=40)), norm_eps=1e-5, activation="silu",
    context_len=2048, attention_scale=64**-0.5, tied_embeddings=True,
)  # fmt: skip
GEMMA_LIKE = replace(
    PLAIN, sandwich_norms=True, attention_softcap=20.0, logit_softcap=30.0, activation="gelu_tanh", qk_norm=True, head_dim=128, num_heads=4,
    layers=(LayerSpec(RopeSpec(10000.0, 128)), LayerSpec(RopeSpec(1e6, 128), window=100)), attention_scale=128**-0.5,
)  # fmt: skip
ODD = replace(
    PLAIN, head_dim=96, num_heads=7, num_kv_heads=1, qkv_bias=True, layers=(LayerSpec(RopeSpec(10000.0, 64)), LayerSpec(None)),
    attention_scale=96**-0.5, tied_embeddings=False, norm_offset=1.0,
)  # fmt: skip
MIXED = ((1, 5, 1, 130, 1, 2, 300), (700, 5, 33, 300, 650, 80, 300))
PROMPTS = ((2100, 1, 60), (2100, 90, 60))
PAIR = ((1, 2048, 2048), (30, 2048, 2048))
DECODE = ((1,) * 6, (700, 5, 33, 300, 650, 80))


def make_model(spec: ModelSpec, dtype: torch.dtype) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(spec, dtype=dtype, device=DEVICE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.06)
    return model


def make_pool(spec: ModelSpec, dtype: torch.dtype, page_size: int) -> KVPool:
    torch.manual_seed(1)
    both = [torch.randn(POOL_TOKENS, spec.num_kv_heads, spec.head_dim, dtype=dtype, device=DEVICE) for _ in range(2 * spec.num_layers)]
    return KVPool(tuple(both[: spec.num_layers]), tuple(both[spec.num_layers :]), page_size)


def make_batch(
    spec: ModelSpec, lens: tuple[tuple[int, ...], tuple[int, ...]], page_size: int, shared: tuple[SharedPrefix, ...]
) -> ForwardBatch:
    query_lens, kv_lens = lens
    torch.manual_seed(2)
    table = torch.zeros(len(kv_lens), -(-max(kv_lens) // page_size), dtype=torch.int32)
    pages, used = torch.randperm(POOL_TOKENS // page_size, dtype=torch.int32), 0
    for row, length in enumerate(kv_lens):
        count = -(-length // page_size)
        table[row, :count] = pages[used : used + count]
        used += count
    for prefix in shared:
        places = slice(prefix.start // page_size, prefix.end // page_size)
        table[list(prefix.rows), places] = table[prefix.rows[0], places]
    starts = np.concatenate(([0], np.cumsum(query_lens)))
    position = torch.cat([torch.arange(k - q, k) for q, k in zip(query_lens, kv_lens, strict=True)])
    row_of = torch.repeat_interleave(torch.arange(len(query_lens)), torch.tensor(query_lens))
    places = table[row_of, position // page_size].long() * page_size + position % page_size
    tokens = torch.randint(0, spec.vocab_size, (int(starts[-1]),))
    numbers = (tokens, position, places, torch.tensor(starts, dtype=torch.int32), torch.tensor(kv_lens, dtype=torch.int32), table)
    wanted = torch.tensor(starts[1:] - 1)
    return ForwardBatch(*(t.to(DEVICE) for t in (*numbers, wanted)), query_lens, kv_lens, shared)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("lens", [MIXED, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize(
    ("spec", "page_size"), [(PLAIN, 1), (PLAIN, 16), (GEMMA_LIKE, 4), (ODD, 1)], ids=["plain", "pages16", "gemma", "odd"]
)
def test_fused_step_equals_transformer(
    spec: ModelSpec, page_size: int, lens: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype
) -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    shared = (SharedPrefix((0, 4), 0, 512),)
    batch = make_batch(spec, lens, page_size, shared)
    with torch.inference_mode():
        exact_pool, exact = make_pool(spec, torch.float32, page_size), TorchAttention()
        exact_model = make_model(spec, dtype).float()
        exact.prepare(batch, exact_pool)
        for rotary in exact_model.rotaries:
            rotary.dtype = torch.float32
        expected = exact_model(batch, exact)
        attention, pool = (
            TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=DEVICE),
            make_pool(spec, dtype, page_size),
        )
        attention.prepare(batch, pool)
        given = FusedStep(make_model(spec, dtype), attention).forward(batch)
    tolerance = {torch.bfloat16: 4e-2, torch.float16: 6e-3, torch.float32: 2e-3}[dtype]
    assert torch.isfinite(given).all()
    assert (given - expected).norm() / expected.norm() < tolerance
    for left, right in zip(exact_pool.keys + exact_pool.values, pool.keys + pool.values, strict=True):
        assert (left - right).norm() / left.norm() < tolerance


@pytest.mark.parametrize("num_tokens", [1, 5, 16])
def test_skinny_linear(num_tokens: int) -> None:
    from ramet.runtime.kernels.gpu.skinny_linear import skinny_linear

    torch.manual_seed(num_tokens)
    h, w = torch.randn(num_tokens, 1024, device=DEVICE), torch.randn(500, 1024, device=DEVICE) / 32
    bias = torch.randn(500, device=DEVICE)
    x, wb, bb = (t.bfloat16() for t in (h, w, bias))
    base = torch.randn(num_tokens, 500, device=DEVICE).bfloat16()
    product = F.linear(x.float(), wb.float())
    expected = [product + bb.float(), base.float() + product, product]
    given = [skinny_linear(x, wb, bias=bb), skinny_linear(x, wb, add_to=base), skinny_linear(x, wb, dtype=torch.float32)]
    for want, got in zip(expected, given, strict=True):
        assert (got.float() - want).norm() / want.norm() < 1e-2


@pytest.mark.parametrize("num_tokens", [17, 32, 50, 64])
def test_parts_of_a_product_and_the_norm_that_adds_them(num_tokens: int) -> None:
    from ramet.runtime.kernels.gpu.elementwise import add_rms_norm
    from ramet.runtime.kernels.gpu.split_linear import split_linear, splits

    torch.manual_seed(num_tokens)
    x, w = torch.randn(num_tokens, 1024, device=DEVICE).bfloat16(), (torch.randn(512, 1024, device=DEVICE) / 32).bfloat16()
    assert splits(w, num_tokens) and not splits(w, 65) and not splits(w[:500], num_tokens)
    product = F.linear(x.float(), w.float())
    parts = split_linear(x, w)
    assert (parts.sum(0) - product).norm() / product.norm() < 1e-5
    hidden, weight = torch.randn(num_tokens, 512, device=DEVICE).bfloat16(), torch.randn(512, device=DEVICE).bfloat16()
    total = (hidden.float() + product).bfloat16()
    expected = F.rms_norm(total.float(), (512,), weight.float(), 1e-5)
    given = add_rms_norm(hidden, parts, weight, 1e-5)
    assert (given.float() - expected).norm() / expected.norm() < 1e-2
    assert (hidden.float() - total.float()).norm() / total.float().norm() < 1e-2  # updated in place


@pytest.mark.parametrize("lens", [PROMPTS, PAIR], ids=["padded", "pair"])
def test_long_whole_prompts_through_dense_attention(lens: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    spec = replace(PLAIN, layers=(LayerSpec(RopeSpec(10000.0, 64)),) * 2)
    batch = make_batch(spec, lens, 1, ())
    logits = []
    with torch.inference_mode():
        for dense in (False, True):
            attention = TritonAttention(num_heads=8, num_kv_heads=2, device=DEVICE, dense_prompts=dense)
            attention.prepare(batch, make_pool(spec, torch.bfloat16, 1))
            logits.append(FusedStep(make_model(spec, torch.bfloat16), attention).forward(batch))
    assert (logits[0] - logits[1]).norm() / logits[0].norm() < 2e-2


@pytest.mark.parametrize(("num_heads", "head_dim"), [(5, 128), (18, 80)])
def test_heads_are_normed_where_they_lie(num_heads: int, head_dim: int) -> None:
    from ramet.runtime.kernels.gpu.elementwise import norm_heads

    qkv, weight = torch.randn(7, num_heads + 2, head_dim, device=DEVICE).bfloat16(), torch.randn(num_heads, head_dim, device=DEVICE)
    heads, values = qkv[:, :num_heads], qkv[:, num_heads:].clone()
    expected = F.rms_norm(heads.float(), (head_dim,), None, 1e-6) * weight
    norm_heads(heads, weight, 1e-6)
    torch.testing.assert_close(heads.float(), expected, rtol=1e-2, atol=1e-3)
    assert torch.equal(qkv[:, num_heads:], values)


def test_greedy_choice_takes_the_first_of_equals() -> None:
    from ramet.runtime.kernels.gpu.greedy_choice import greedy_tokens

    torch.manual_seed(0)
    logits = torch.randn(7, 50001, device=DEVICE).bfloat16().float()  # many ties
    first = (logits == logits.max(-1, keepdim=True).values).int().argmax(-1)
    assert torch.equal(greedy_tokens(logits), first)


def test_mask_kernel_equals_unpacked_bits() -> None:
    from ramet.runtime.executor.torch_choice import unpack_masks
    from ramet.runtime.kernels.gpu.token_masks import mask_logits

    vocab, rows = 50001, [6, 0, 3]
    logits = torch.randn(7, vocab, device=DEVICE)
    bits = np.random.default_rng(0).integers(0, 1 << 32, (3, -(-vocab // 32)), dtype=np.uint32)
    expected = logits.clone()
    expected[rows] = expected[rows].masked_fill(~unpack_masks(bits, vocab, DEVICE), float("-inf"))
    mask_logits(logits, torch.tensor(rows, dtype=torch.int32, device=DEVICE), torch.from_numpy(bits.view(np.int32)).to(DEVICE))
    assert torch.equal(logits, expected)
