"""Kernels that a first start compiles side by side. In a process of its own: kernels stay in the one that called them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("model", "makes_places"), [("dense", {"_decode_inputs"}), ("experts", {"_decode_inputs", "_choose_experts", "_order_by_expert"})]
)
def test_a_rehearsal_leaves_nothing_to_compile_in_calls_but_what_makes_places(model: str, makes_places: set[str], tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.gpu.rehearsed_start", model]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert set(said["in_calls"]) == makes_places
    assert said["noted"] == len(said["side_by_side"]) > 5
    assert not said["goes_on"]


LAUNCHER = """#include <Python.h>
static PyObject* launch(PyObject* self, PyObject* args) { return PyLong_FromLong(%d); }
static PyMethodDef methods[] = {{"launch", launch, METH_VARARGS, ""}, {0}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "__triton_launcher", NULL, -1, methods};
PyMODINIT_FUNC PyInit___triton_launcher(void) { return PyModule_Create(&definition); }
"""


def test_threads_load_their_own_launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `_launchers_apart` one in a hundred is another's."""
    from triton.runtime import build  # only a GPU machine has it

    from ramet.runtime.kernels.gpu.rehearsal import _launchers_apart

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def launched(number: int) -> int:
        return int(build.compile_module_from_src(src=LAUNCHER % number, name="__triton_launcher").launch())

    numbers = [i % 8 for i in range(4000)]
    assert [launched(number) for number in range(8)] == list(range(8))
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        with _launchers_apart(), ThreadPoolExecutor(8) as pool:
            assert list(pool.map(launched, numbers)) == numbers
    finally:
        sys.setswitchinterval(interval)
