"""config.json's `quantization_config` → CheckpointFormat. What a checkpoint says that would change its numbers and is not implemented is
refused by its field. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ramet.errors import Unsupported
from ramet.runtime.model_spec import CheckpointFormat

Fields = Mapping[str, Any]
_KEY = "quantization_config"


def checkpoint_format(config: Fields) -> CheckpointFormat | None:
    """None where matrices are stored as numbers."""
    fields = config.get(_KEY) or config.get("compression_config")
    if not fields:
        return None
    method = str(fields.get("quant_method", "")).lower()
    if method not in _READERS:
        raise _refused("quant_method", method, "supported are " + ", ".join(_READERS) + "; take the model in one of these, or unquantised")
    return _READERS[method](fields)


def _awq(fields: Fields) -> CheckpointFormat:
    _demand(fields, "version", ("gemm", "GEMM", None), "take the checkpoint in AWQ's gemm layout")
    bits = _integer(fields, "bits", "w_bit")
    if bits != 4:
        raise _refused("bits", bits, "AWQ has 4")
    if not fields.get("zero_point", True):
        raise _refused("zero_point", False, "AWQ checkpoints have zero points")
    return CheckpointFormat(method="awq", layout="awq", bits=4, group=_group(_integer(fields, "group_size", "q_group_size")))


def _gptq(fields: Fields) -> CheckpointFormat:
    bits = _integer(fields, "bits")
    if bits not in (4, 8):
        raise _refused("bits", bits, "4 and 8 are supported")
    stored = str(fields.get("checkpoint_format", "gptq"))
    if stored not in ("gptq", "gptq_v2"):
        raise _refused("checkpoint_format", stored, "gptq and gptq_v2 are supported")
    _demand(fields, "dynamic", (None, {}, False), "all matrices must be quantised alike")
    _demand(fields, "lm_head", (None, False), "the head must be stored as numbers")
    offset = 1 if stored == "gptq" else 0
    return CheckpointFormat(method="gptq", layout="gptq", bits=bits, group=_group(_integer(fields, "group_size")), zero_offset=offset)


def _fp8(fields: Fields) -> CheckpointFormat:
    _demand(fields, "fmt", ("e4m3", None), "the format must be e4m3")
    block = fields.get("weight_block_size")
    if block is None:
        return CheckpointFormat(method="fp8", layout="fp8", bits=8)
    return CheckpointFormat(method="fp8", layout="fp8", bits=8, group=int(block[1]), block_rows=int(block[0]))


def _compressed(fields: Fields) -> CheckpointFormat:
    groups = list((fields.get("config_groups") or {}).values())
    if len(groups) != 1 or list(groups[0].get("targets", ["Linear"])) != ["Linear"]:
        raise _refused("config_groups", [g.get("targets") for g in groups], "one group for all layers of type Linear is supported")
    _demand(fields, "sparsity_config", (None, {}), "sparse weights are not supported")
    weights = groups[0].get("weights") or {}
    kind, bits = str(weights.get("type", "int")), int(weights.get("num_bits", 0))
    layout = _compressed_layout(str(fields.get("format")), kind, bits)
    strategy = str(weights.get("strategy", "tensor"))
    if strategy not in ("tensor", "channel", "group", "block"):
        raise _refused("weights.strategy", strategy, "tensor, channel, group and block are supported")
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return CheckpointFormat(method="compressed-tensors", layout=layout, bits=bits, group=int(columns), block_rows=int(rows))
    group = _group(int(weights["group_size"])) if strategy == "group" else None
    return CheckpointFormat(method="compressed-tensors", layout=layout, bits=bits, group=group)


def _compressed_layout(stored: str, kind: str, bits: int) -> Any:
    layouts = {
        ("float-quantized", "float", 8): "fp8",
        ("naive-quantized", "float", 8): "fp8",
        ("naive-quantized", "int", 8): "int8",
        ("int-quantized", "int", 8): "int8",
        ("pack-quantized", "int", 4): "int-packed",
        ("pack-quantized", "int", 8): "int-packed",
    }
    if (stored, kind, bits) not in layouts:
        known = "; ".join(f"{name} of {count}-bit {what}" for name, what, count in layouts)
        raise _refused("format", f"{stored} of {bits}-bit {kind}", f"supported are {known}")
    return layouts[stored, kind, bits]


_READERS: Mapping[str, Callable[[Fields], CheckpointFormat]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "compressed-tensors": _compressed,
}


def _integer(fields: Fields, *names: str) -> int:
    value = next((fields[name] for name in names if name in fields), None)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refused(names[0], value, "an integer is needed")
    return value


def _group(size: int) -> int | None:
    """-1: one scale for all inputs of a row."""
    if size == -1:
        return None
    if size < 1:
        raise _refused("group_size", size, "it is a number of inputs, or -1")
    return size


def _demand(fields: Fields, name: str, allowed: tuple[Any, ...], otherwise: str) -> None:
    if fields.get(name) not in allowed:
        raise _refused(name, fields[name], otherwise)


def _refused(name: str, value: Any, otherwise: str) -> Unsupported:
    return Unsupported(f"config.json has {_KEY}.{name}={value!r}, which is not supported: {otherwise}", param=_KEY)
