"""Checkpoints in GGUF files: llama.cpp's tensor names and layouts → Hugging Face's, quantised blocks → float32."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from ramet.runtime.executor.weight_source import Piece
from ramet.runtime.gguf_file import GgufFile, GgufTensor, open_gguf
from ramet.runtime.gguf_quants import dequantise
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec

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


class GgufSource:
    """Dequantises a piece of rows when it is read."""

    adds_norm_offset = True

    def __init__(self, files: ModelFiles, spec: ModelSpec) -> None:
        file = open_gguf(files.path)
        self._permuted = file.metadata["general.architecture"] in PERMUTED
        self._head_dim = spec.head_dim
        self._tensors = _renamed(file, spec)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        for name, region in wanted.items():
            tensor = self._tensors[name]
            permuted = bool(self._permuted and re.search(r"\.[qk]_proj\.", name))
            if len(tensor.shape) == 1:
                yield Piece(name, tensor.blocks.nbytes, partial(_read_vector, tensor, self._head_dim if permuted else None, region))
            else:
                yield from _pieces_of_rows(name, tensor, region, self._head_dim if permuted else None)

    def stored(self, name: str) -> tuple[str, npt.NDArray[np.uint8]]:
        """Type and rows [n, bytes of a row] of a matrix as they lie in the file, rows in Hugging Face's order."""
        tensor = self._tensors[name]
        if not (self._permuted and re.search(r"\.[qk]_proj\.", name)):
            return tensor.type.name, tensor.blocks
        interleaved = np.arange(tensor.shape[0]).reshape(-1, self._head_dim // 2, 2)
        return tensor.type.name, tensor.blocks[interleaved.transpose(0, 2, 1).reshape(-1)]


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


def _pieces_of_rows(name: str, tensor: GgufTensor, region: Region, head_dim: int | None) -> Iterator[Piece]:
    """`head_dim`: of heads whose rows llama.cpp stores in another order; no piece divides one of those."""
    columns = range(tensor.shape[-1]) if region.columns is None else region.columns
    step = max(1, PIECE_VALUES // len(columns))
    step = step if head_dim is None else -(-step // head_dim) * head_dim
    row_bytes = tensor.blocks.shape[1] * len(columns) // tensor.shape[-1]
    done = 0
    for rows in (range(tensor.shape[0]),) if region.rows is None else region.rows:
        for part in (rows[first : first + step] for first in range(0, len(rows), step)):
            read = partial(_read, tensor, part, columns, head_dim)
            yield Piece(name, len(part) * row_bytes, read, done + part.start - rows.start)
        done += len(rows)


def _read(tensor: GgufTensor, rows: range, columns: range, head_dim: int | None) -> torch.Tensor:
    values = torch.from_numpy(dequantise(tensor, rows.start, rows.stop, columns))
    return values if head_dim is None else _in_halves(values, head_dim)


def _read_vector(tensor: GgufTensor, head_dim: int | None, region: Region) -> torch.Tensor:
    values = torch.from_numpy(dequantise(tensor)).view(-1, 1)
    return region.of((values if head_dim is None else _in_halves(values, head_dim)).view(-1))


def _in_halves(values: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Undo the order in which llama.cpp stores the rows of a head: first and second half interleaved."""
    return values.view(-1, head_dim // 2, 2, values.shape[-1]).transpose(1, 2).reshape(values.shape)
