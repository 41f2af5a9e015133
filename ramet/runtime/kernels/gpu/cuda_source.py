"""Kernels in CUDA: compiled by NVRTC, which torch brings along, kept in the user's cache, and launched through the driver."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from ramet.user_cache import draft_of, user_cache


def compile_in_background(source: str, definitions: Mapping[str, str], architecture: str) -> Future[bytes]:
    """Machine code of a file beside this one, from the cache where it is there. `result()` raises ImportError without NVIDIA's bindings,
    RuntimeError with what the compiler said, OSError."""
    future: Future[bytes] = Future()

    def work() -> None:
        try:
            future.set_result(_binary(Path(__file__).with_name(source), definitions, architecture))
        except Exception as error:
            future.set_exception(error)

    Thread(target=work, name=f"ramet-compile-{source}", daemon=True).start()
    return future


@dataclass(frozen=True, slots=True)
class TensorMap:
    """How the copy engine finds boxes of lines and columns in a matrix, and lays them in shared memory."""

    handle: Any

    @classmethod
    def of(cls, matrix: torch.Tensor, box: tuple[int, int], *, swizzled: bool) -> TensorMap:
        """`matrix` of 16 bits in lines of a multiple of 16 bytes, one after the other; `box`: lines and columns. `swizzled`: the chunks of
        lines of 128 bytes change places, so that those of one column lie in different banks."""
        if not matrix.is_contiguous():
            raise ValueError("a tensor map of this kind needs its matrix line after line in memory")
        lines, columns = matrix.shape
        return cls(_tensor_map(matrix.data_ptr(), lines, columns, matrix.dtype, box, swizzled))


class CudaKernel:
    """One function of a compiled source, on one device."""

    def __init__(self, binary: bytes, name: str, shared_bytes: int, device: torch.device) -> None:
        """`shared_bytes`: dynamic shared memory per block."""
        from cuda.bindings import driver

        torch.empty(1, device=device)  # this thread has the device's context from here on
        self._driver, self._shared_bytes, self._device = driver, shared_bytes, device
        self._module = _checked(driver.cuModuleLoadData(binary))
        self._function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
        dynamic = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(self._function, dynamic, shared_bytes))

    def launch(self, blocks: int, threads: int, *arguments: TensorMap | int) -> None:
        """On torch's current stream. Integers are the kernel's `int`."""
        values = tuple(argument.handle if isinstance(argument, TensorMap) else argument for argument in arguments)
        types = tuple(None if isinstance(argument, TensorMap) else ctypes.c_int for argument in arguments)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        _checked(self._driver.cuLaunchKernel(self._function, blocks, 1, 1, threads, 1, 1, self._shared_bytes, stream, (values, types), 0))


@lru_cache(maxsize=4096)
def _tensor_map(address: int, lines: int, columns: int, dtype: torch.dtype, box: tuple[int, int], swizzled: bool) -> Any:
    from cuda.bindings import driver

    types, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    element = types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if dtype == torch.bfloat16 else types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    return _checked(
        driver.cuTensorMapEncodeTiled(
            element, 2, address, [driver.cuuint64_t(columns), driver.cuuint64_t(lines)], [driver.cuuint64_t(2 * columns)],
            [driver.cuuint32_t(box[1]), driver.cuuint32_t(box[0])], [driver.cuuint32_t(1)] * 2,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzles.CU_TENSOR_MAP_SWIZZLE_128B if swizzled else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )  # fmt: skip


def _binary(source: Path, definitions: Mapping[str, str], architecture: str) -> bytes:
    text = source.read_bytes()
    options = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{name}={value}" for name, value in definitions.items())]
    digest = hashlib.sha256("\0".join((*options, str(torch.version.cuda))).encode() + text).hexdigest()[:16]
    target = user_cache("kernels") / f"{source.stem}_{digest}.cubin"
    if not target.exists():
        with draft_of(target) as draft:
            draft.write_bytes(_compile(text, source.name, options))
    return target.read_bytes()


def _compile(text: bytes, name: str, options: list[str]) -> bytes:
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(text, name.encode(), 0, [], []))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(error):
        said = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, said)
        raise RuntimeError(f"NVRTC could not compile {name}: {said.decode(errors='replace')[-2000:]}")
    binary: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, binary))
    return binary


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call of the driver or of NVRTC returned beside its error. Raises RuntimeError."""
    error, *rest = answer
    if int(error):
        raise RuntimeError(str(error))
    return rest[0] if rest else None
