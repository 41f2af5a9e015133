"""What `import ramet` offers, what it costs, and that SGLang's programs find their names and arguments."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import ramet as sgl

SGLANG_NAMES = {
    *("Engine", "OpenAI", "Runtime", "RuntimeEndpoint", "__version__", "assistant", "assistant_begin", "assistant_end", "flush_cache"),
    *("function", "gen", "gen_int", "gen_string", "get_server_info", "greedy_token_selection", "image", "select", "separate_reasoning"),
    *("set_default_backend", "system", "system_begin", "system_end", "token_length_normalized", "unconditional_likelihood_normalized"),
    *("user", "user_begin", "user_end"),
}
SGLANG_GEN = (
    *("name", "max_tokens", "min_tokens", "n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p"),
    *("frequency_penalty", "presence_penalty", "ignore_eos", "return_logprob", "logprob_start_len", "top_logprobs_num"),
    *("return_text_in_logprobs", "dtype", "choices", "choices_method", "regex", "json_schema"),
)
SGLANG_STATE = (
    *("set_var", "get_var", "text", "messages", "sync", "error", "get_meta_info", "text_iter", "text_async_iter"),
    *("system", "user", "assistant", "var_scope", "fork", "copy"),
)


def test_a_name_that_is_not_there_is_told_the_one_that_was_meant() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Anthropic'; sgl\.OpenAI"):
        _ = sgl.Anthropic
    done = subprocess.run([sys.executable, "-c", "import ramet; ramet.gem"], capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith("has no attribute 'gem'. Did you mean: 'gen'?")


def test_the_public_names() -> None:
    assert set(sgl.__all__) >= SGLANG_NAMES
    assert sgl.__all__ == sorted(sgl.__all__)
    assert set(sgl.__all__) - SGLANG_NAMES == {
        "Function",
        "ProgramState",
        "ScriptedBackend",
        "State",
        "call",
        "errors",
        "host",
        "set_default_runtime",
    }
    assert all(getattr(sgl, name) is not None for name in sgl.__all__)
    assert sgl.set_default_runtime is sgl.set_default_backend
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sgl.nonsense


def test_sglangs_signatures() -> None:
    assert list(inspect.signature(sgl.gen).parameters)[: len(SGLANG_GEN)] == list(SGLANG_GEN)
    assert all(p.default is None for p in inspect.signature(sgl.gen).parameters.values())
    assert list(inspect.signature(sgl.select).parameters)[:4] == ["name", "choices", "temperature", "choices_method"]
    for role in (sgl.system, sgl.user, sgl.assistant):
        assert list(inspect.signature(role).parameters) == ["expr"]
    assert list(inspect.signature(sgl.RuntimeEndpoint).parameters)[:3] == ["base_url", "api_key", "verify"]
    assert list(inspect.signature(sgl.OpenAI).parameters)[:4] == ["model_name", "is_chat_model", "chat_template", "is_azure"]
    for method in ("run", "run_batch", "bind", "cache", "trace", "arun", "arun_batch", "astream"):
        assert callable(getattr(sgl.Function, method))
    for method in SGLANG_STATE:
        assert callable(getattr(sgl.State, method))


def test_run_takes_every_sampling_argument_of_sglang() -> None:
    given = dict.fromkeys(("max_new_tokens", "n", "top_k", "logprob_start_len", "top_logprobs_num"), 1)
    given |= {"stop": ["x"], "stop_token_ids": [1], "stop_regex": "x", "temperature": 0.5, "top_p": 0.5, "min_p": 0.1, "ignore_eos": True}
    given |= {"frequency_penalty": 0.1, "presence_penalty": 0.1, "return_logprob": True, "return_text_in_logprobs": True}
    backend = sgl.ScriptedBackend()
    sgl.function(lambda s: s.__iadd__(sgl.gen("a"))).run(**given, stream=False, use_thread=True, backend=backend)
    call = backend.calls[0]
    assert {**call.sampling, **call.logprobs} == {name: value for name, value in given.items() if name != "n"}


def test_import_is_light() -> None:
    script = (
        "import json, sys, time; began = time.process_time(); import ramet; took = time.process_time() - began;"
        "print(json.dumps([took, ramet.__version__, [m for m in ('torch', 'httpx', 'tqdm', 'pydantic', 'numpy') if m in sys.modules]]))"
    )
    runs = [json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert min(took for took, _, _ in runs) < 0.5
    assert runs[0][1:] == [sgl.__version__, []]
