"""The paged KV pool of the CPU step, in plain memory. No torch."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ramet.errors import OutOfMemory

KvArray = npt.NDArray[Any]
Pointers = ctypes.Array[ctypes.c_void_p]


@dataclass(frozen=True, slots=True)
class KvType:
    """How keys and values are kept. `number`: the kernels' name for it; `dtype`: numpy's, which for bfloat16 has only the bits."""

    name: str
    number: int
    dtype: np.dtype[Any]


KV_TYPES: Mapping[str, KvType] = MappingProxyType(
    {
        name: KvType(name, number, np.dtype(dtype))
        for name, number, dtype in (("float32", 0, np.float32), ("float16", 1, np.float16), ("bfloat16", 2, np.uint16))
    }
)


@dataclass(frozen=True, slots=True)
class CpuKvPool:
    """Keys and values of all layers, one array [slots, KH, D] per layer, paged as `KVPool` says."""

    keys: tuple[KvArray, ...]
    values: tuple[KvArray, ...]
    page_size: int
    type: KvType
    key_pointers: Pointers = field(init=False, repr=False)
    value_pointers: Pointers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_pointers", _pointers(self.keys))
        object.__setattr__(self, "value_pointers", _pointers(self.values))


def allocate_cpu_pool(num_layers: int, shape: tuple[int, int, int], page_size: int, kv_type: KvType) -> CpuKvPool:
    """`shape`: of a layer's keys, [slots, KH, D]. The system hands out the memory when it is written. Raises `OutOfMemory`."""
    try:
        keys, values = (tuple(_untouched(shape, kv_type.dtype) for _ in range(num_layers)) for _ in range(2))
    except (OSError, OverflowError, ValueError) as error:
        size = 2 * num_layers * prod(shape) * kv_type.dtype.itemsize
        raise OutOfMemory(
            f"the system refused {size / 2**30:.2f} GiB for a KV cache of {shape[0]} tokens ({error}); lower --max-total-tokens "
            f"or --mem-fraction-static, or free memory that other processes hold"
        ) from error
    return CpuKvPool(keys, values, page_size, kv_type)


def _untouched(shape: tuple[int, ...], dtype: np.dtype[Any]) -> KvArray:
    """In pages of the usual size: numpy would ask for huge ones, and the first token would take one of them in every layer."""
    memory = mmap.mmap(-1, max(prod(shape) * dtype.itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype=dtype, count=prod(shape)).reshape(shape)


def _pointers(arrays: tuple[KvArray, ...]) -> Pointers:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
