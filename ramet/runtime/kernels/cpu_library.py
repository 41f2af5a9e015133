"""Builds and loads the C++ kernels of `kernels/cpu` (AVX2, FMA, F16C): quantised linear layers and the whole decoder step.

The library is compiled once per source, compiler and processor with the machine's own C++ compiler, and kept in the user's cache
directory. Where there is no compiler or no AVX2, `load` raises `Unsupported` and the caller uses the torch path instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from contextlib import suppress
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

from ramet.errors import Unsupported
from ramet.log import get_logger
from ramet.user_cache import draft_of, user_cache

logger = get_logger(__name__)

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fno-tree-reassoc", "-fno-tree-ter", "-shared", "-fPIC", "-pthread")
REQUIRED_FEATURES = frozenset({"avx2", "fma", "f16c"})


class Linear(Structure):
    """One packed weight matrix [n, k] of 4, 5, 6 or 8 bits; `bias` may be null."""

    _fields_ = (("n", c_int32), ("k", c_int32), ("bits", c_int32), ("packed", c_void_p), ("bias", c_void_p))


class Layer(Structure):
    _fields_ = (
        ("qkv", Linear * 3),
        *((name, Linear) for name in ("out", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "query_norm", "key_norm")),
        *((name, c_void_p) for name in ("added_by_attention_norm", "added_by_mlp_norm", "cosine", "sine")),
        ("window", c_int64),
    )


class Model(Structure):
    """`kv_type`: 0 float32, 1 float16, 2 bfloat16. `activation`: 0 silu, 1 gelu_tanh."""

    _fields_ = (
        *((name, c_int32) for name in ("num_layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab", "kv_type")),
        *((name, c_int32) for name in ("rotary_dim", "activation")),
        *((name, c_float) for name in ("norm_epsilon", "attention_scale", "embedding_scale")),
        ("layers", POINTER(Layer)),
        ("head", Linear),
        *((name, c_void_p) for name in ("final_norm", "embedding")),
        *((name, c_int64) for name in ("embedding_row", "embedding_type")),
    )


class Batch(Structure):
    """A `ForwardBatch` as pointers. `lines`: int64, the line of the page table that is each row's; null: the row's number.
    `one_by_one`: 1 to attend query by query in prompts too."""

    _fields_ = (
        *((name, c_int32) for name in ("num_tokens", "num_rows", "num_logits", "max_pages", "page_size", "one_by_one")),
        *((n, c_void_p) for n in ("token_ids", "positions", "kv_slots", "query_starts", "kv_lens", "page_table", "logit_indices", "lines")),
    )


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The compiled library, built on first use (about ten seconds). Raises `Unsupported` where it cannot be built."""
    library = ctypes.CDLL(str(build()))
    library.ramet_context_new.restype = c_void_p
    library.ramet_context_new.argtypes = [c_int]
    library.ramet_context_free.argtypes = [c_void_p]
    library.ramet_measure_batched_from.argtypes = [c_void_p]
    library.ramet_set_batched_from.argtypes = [c_void_p, c_int]
    library.ramet_packed_bytes.restype = c_int64
    library.ramet_packed_bytes.argtypes = [c_int, c_int64, c_int64]
    library.ramet_pack.argtypes = [c_void_p, c_int, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p]
    library.ramet_pack_stored.argtypes = [c_void_p, c_int, c_int64, c_int64, c_void_p, c_int64, c_void_p]
    library.ramet_linear.argtypes = [c_void_p, POINTER(Linear), c_void_p, c_int64, c_void_p]
    library.ramet_step.argtypes = [c_void_p, POINTER(Model), POINTER(Batch), c_void_p, c_void_p, c_void_p]
    library.ramet_attention.argtypes = [c_void_p, POINTER(Model), POINTER(Batch), c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p]
    library.ramet_likeliest.argtypes = [c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p]
    library.ramet_draw.argtypes = [c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p]
    library.ramet_forbid.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p, c_int]
    return library


def new_context(num_threads: int) -> c_void_p:
    """Threads and scratch memory, with the kernels chosen that are the fastest here: measured once per machine and number of threads, and
    kept beside the library. The choice changes no number."""
    library = load()
    handle = library.ramet_context_new(num_threads)
    kept = build().with_suffix(f".{num_threads}_threads")
    try:
        batched_from = int(kept.read_text())
    except (OSError, ValueError):
        batched_from = library.ramet_measure_batched_from(handle)
        logger.info("Measured: rows are multiplied in batches from %d rows on", batched_from)
        with suppress(OSError):
            kept.write_text(str(batched_from))
    library.ramet_set_batched_from(handle, batched_from)
    return c_void_p(handle)


def build() -> Path:
    """Path of the shared library for this machine, compiled if it is not in the cache."""
    missing = REQUIRED_FEATURES - processor_features()
    if missing:
        raise Unsupported(f"the CPU kernels need {', '.join(sorted(missing))}, which this processor lacks; use --quantization none")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unsupported("the CPU kernels need a C++ compiler (g++ or clang++, or $CXX); install one or use --quantization none")
    target = user_cache("kernels") / f"ramet_cpu_{_digest(compiler)}.so"
    if not target.exists():
        logger.info("Compiling the CPU kernels once for this machine (about ten seconds)")
        _compile(compiler, target)
    return target


def processor_features() -> frozenset[str]:
    """Feature flags of the processor as Linux names them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def _digest(compiler: str) -> str:
    parts = [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in {".h", ".cpp"}]
    parts += [compiler.encode(), " ".join(FLAGS).encode(), " ".join(sorted(processor_features())).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    with draft_of(target) as draft:
        done = subprocess.run([compiler, *FLAGS, str(SOURCES / "step.cpp"), "-o", str(draft)], capture_output=True, text=True)
        if done.returncode != 0:
            raise Unsupported(f"{compiler} could not compile the CPU kernels; use --quantization none. It said:\n{done.stderr[-2000:]}")
