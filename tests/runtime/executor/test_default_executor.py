"""Who runs a model: the CPU's own step without torch where it covers the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import ConfigError, Unsupported
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor import default_executor
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.core_count import usable_cores

GENERATE = """
import sys
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine import worker_main
from ramet.runtime.engine.worker_parts import WorkerSpec, resolved
from ramet.runtime.plan import BatchPlan, PlanRow, RowStart
from ramet.runtime.request import LogprobParams, SamplingParams

executor = resolved(WorkerSpec(EngineConfig()).executor)(EngineConfig.from_options({"device": "cpu", "max_total_tokens": 512}))
sampling = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2, logit_bias={7: 1.0}, min_new_tokens=2)
start = RowStart(sampling, 1, LogprobParams(0, 3, (5,)), (1, 2, 3), (), (2,))
plan = BatchPlan(0, (PlanRow("r", 0, (1, 2, 3), 0, 0, (4, 5, 6), True, start, 0),))
executor.launch(plan)
(row,) = executor.sample(plan, None).result().rows
lines = open("/proc/self/status").read().splitlines()
resident = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS:"))
beside = resident - (executor.model.weight_bytes >> 20)
print(len(row.token_ids), len(row.logprobs), len(row.prompt_logprobs), "torch" in sys.modules, beside)
executor.close()
"""


@pytest.mark.model
def test_the_default_model_runs_without_torch() -> None:
    """A whole worker's imports, the weights, and a step with all that a request may ask for; in its memory there is not much besides."""
    if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
        pytest.skip("the processor lacks AVX2, FMA or F16C")
    done = subprocess.run([sys.executable, "-c", GENERATE], capture_output=True, text=True, check=True)
    *found, mib_beside_weights = done.stdout.split()
    assert found == ["1", "1", "3", "False"], done.stderr
    assert int(mib_beside_weights) < 180


@pytest.mark.parametrize(
    ("device", "driver", "expected"), [("cpu", True, True), ("auto", False, True), ("auto", True, None), ("cuda", False, False)]
)
def test_torch_is_asked_for_a_device_only_where_there_may_be_one(
    device: str, driver: bool, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ramet.runtime.executor import torch_executor

    asked = []
    monkeypatch.setattr(default_executor, "GPU_FILES", (str(tmp_path if driver else tmp_path / "missing"),))
    monkeypatch.setattr(torch_executor, "resolve_device", lambda name: asked.append(name) or torch_executor.torch.device("cuda"))
    assert default_executor._runs_on_cpu(device) is bool(expected)
    assert asked == (["auto"] if expected is None else [])


def test_threads_are_one_per_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 4, 5, 9}, raising=False)
    for processor, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert usable_cores(tmp_path) == 4  # 0 and 4, 1 and 5, 2 without its sibling, and 9, of which nothing is known
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert usable_cores(tmp_path) == 3


@pytest.mark.model
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"attention_backend": "triton"}, "attention_backend=triton needs a CUDA device"),
        ({"attention_backend": "flashinfer", "quantization": "none"}, "attention_backend=flashinfer needs a CUDA device"),
        ({"load_format": "dummy", "quantization": "awq"}, "quantization=awq: on a CPU dummy weights stay numbers"),
        ({"load_format": "dummy", "quantization": "q4_1"}, "quantization=q4_1: on a CPU dummy weights stay numbers"),
        ({"quantization": "q4_1", "dtype": "bfloat16"}, "dtype=bfloat16: the quantised CPU kernels compute in float32"),
        ({"quantization": "int8", "dtype": "half"}, "dtype=half: the quantised CPU kernels compute in float32"),
        ({"quantization": "q4_1", "kv_cache_dtype": "fp8_e4m3"}, "keep keys and values in 16 or 32 bits"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "keep keys and values in 16 or 32 bits"),
        ({"quantization": "awq"}, "quantization=awq does not fit the checkpoint"),
        ({"load_format": "safetensors"}, "load_format=safetensors does not fit .*, which is gguf"),
    ],
)
def test_what_cannot_be_had_together_on_a_cpu_is_refused(options: dict[str, Any], complaint: str) -> None:
    config = EngineConfig.from_options({"device": "cpu", "max_total_tokens": 512, **options})
    with pytest.raises((ConfigError, Unsupported), match=complaint) as refused:
        default_executor.create_executor(config)
    assert refused.value.param in options and "\n" not in refused.value.message
