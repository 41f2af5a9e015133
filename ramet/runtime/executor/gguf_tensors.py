"""A GGUF file's tensors under the names and in the order that Hugging Face gives them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ramet.runtime.gguf_file import GgufFile, GgufTensor, open_gguf
from ramet.runtime.gguf_quants import dequantise
from ramet.runtime.kernels.packed_weight import EXACT_BITS, Blocks, StoredRows, from_gguf
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec

Floats = npt.NDArray[np.float32]
PIECE_VALUES = 1 << 20
PERMUTED = ("llama", "smollm3")
"""Architectures whose queries and keys llama.cpp stores for rotation of neighbours instead of halves."""
OUTSIDE_LAYERS = MappingProxyType(
    {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
)
IN_LAYERS = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
SANDWICH = MappingProxyType(
    {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)
FUSED = MappingProxyType({"ffn_up": "mlp.gate_up_proj"})
IN_CONFIG = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the config reader has read."""


class GgufTensors:
    """Implements `StepSource`."""

    adds_norm_offset = True

    def __init__(self, files: ModelFiles, spec: ModelSpec) -> None:
        self._file = open_gguf(files.path)
        self._permuted = self._file.metadata["general.architecture"] in PERMUTED
        self._head_dim = spec.head_dim
        self._tensors = _renamed(self._file, spec)

    def __getitem__(self, name: str) -> GgufTensor:
        return self._tensors[name]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def interleaved(self, name: str) -> int | None:
        """The size of the heads whose rows llama.cpp stores in another order; None: they are in order."""
        return self._head_dim if self._permuted and re.search(r"\.[qk]_proj\.", name) else None

    def kind(self, name: str) -> str:
        return self._tensors[name].type.name

    def stored(self, name: str) -> StoredRows:
        tensor, head_dim = self._tensors[name], self.interleaved(name)
        if head_dim is None:
            return StoredRows(tensor.type.name, tensor.blocks)
        order = np.arange(tensor.shape[0]).reshape(-1, head_dim // 2, 2).transpose(0, 2, 1).reshape(-1)
        return StoredRows(tensor.type.name, tensor.blocks[order])

    def blocks(self, name: str, bits: int | None) -> Blocks | None:
        stored = self.stored(name)
        own = EXACT_BITS.get(stored.kind)
        return from_gguf(stored.kind, stored.rows) if own is not None and bits in (None, own) else None

    def numbers(self, name: str) -> Floats:
        tensor, head_dim = self._tensors[name], self.interleaved(name)
        values, width = np.empty(tensor.shape, np.float32), tensor.shape[-1]
        rows, step = values.reshape(-1, width), max(1, PIECE_VALUES // width)
        for first in range(0, len(rows), step):
            rows[first : first + step] = dequantise(tensor, first, first + step)
        return values if head_dim is None else in_halves(values, head_dim)

    def drop_pages(self) -> None:
        self._file.drop_pages()


def in_halves(values: Floats, head_dim: int) -> Floats:
    """Undo the order in which llama.cpp stores the rows of a head: first and second half interleaved."""
    return values.reshape(-1, head_dim // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _renamed(file: GgufFile, spec: ModelSpec) -> dict[str, GgufTensor]:
    """A name that no table knows is kept: the loader will report it."""
    in_layers = {**IN_LAYERS, **(SANDWICH if spec.sandwich_norms else {}), **(FUSED if spec.fused_checkpoint else {})}
    renamed: dict[str, GgufTensor] = {}
    for name, tensor in file.tensors.items():
        if name in IN_CONFIG:
            continue
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if match and match[2] in in_layers:
            renamed[f"model.layers.{match[1]}.{in_layers[match[2]]}.{match[3]}"] = tensor
        else:
            renamed[OUTSIDE_LAYERS.get(name, name)] = tensor
    return renamed
