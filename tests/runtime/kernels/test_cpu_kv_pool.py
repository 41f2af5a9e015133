from __future__ import annotations

import pytest

from ramet.errors import OutOfMemory
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES, allocate_cpu_pool


@pytest.mark.parametrize("name", KV_TYPES)
def test_layers_have_memory_of_their_own_to_which_the_pointers_point(name: str) -> None:
    pool = allocate_cpu_pool(3, (20, 2, 8), 4, KV_TYPES[name])
    arrays = (*pool.keys, *pool.values)
    for i, array in enumerate(arrays):
        array[:] = i + 1
    assert [int(array.min()) for array in arrays] == [int(array.max()) for array in arrays] == [1, 2, 3, 4, 5, 6]
    assert [*pool.key_pointers, *pool.value_pointers] == [array.ctypes.data for array in arrays]
    assert sum(array.nbytes for array in arrays) == 2 * 3 * 20 * 2 * 8 * KV_TYPES[name].dtype.itemsize


@pytest.mark.parametrize("slots", [2**46, 2**70])
def test_a_refusal_names_the_flag(slots: int) -> None:
    with pytest.raises(OutOfMemory, match="lower --max-total-tokens"):
        allocate_cpu_pool(3, (slots, 2, 8), 1, KV_TYPES["float32"])
