"""Kernels that a first start compiles side by side. In a process of its own: kernels stay in the one that called them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).parents[2]


def test_a_rehearsal_leaves_nothing_to_compile_in_calls_but_what_makes_places(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.gpu.rehearsed_start"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert set(said["in_calls"]) == {"_decode_inputs"}
    assert said["noted"] == len(said["side_by_side"]) > 5
    assert not said["goes_on"]
