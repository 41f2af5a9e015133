"""Ramet: a structured generation language for LLM programs, and the runtime that executes it.

    import ramet as sgl

    @sgl.function
    def answer(s, question):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=64))

    sgl.set_default_backend(sgl.Runtime(endpoint="http://localhost:30000"))
    print(answer.run("What is a ramet?")["answer"])

Importing this module brings no torch and no HTTP client; the heavier names load at their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ramet import errors
from ramet.lang.choices import greedy_token_selection, token_length_normalized, unconditional_likelihood_normalized
from ramet.lang.function import Function, function
from ramet.lang.host import call, host
from ramet.lang.process import flush_cache, get_server_info, set_default_backend
from ramet.lang.result import ProgramState
from ramet.lang.state import State
from ramet.lang.verbs import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    image,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
)
from ramet.version import __version__

if TYPE_CHECKING:
    from ramet.lang.backends.openai_endpoint import OpenAI
    from ramet.lang.backends.runtime_endpoint import RuntimeEndpoint
    from ramet.lang.backends.server_process import Runtime
    from ramet.lang.engine_door import Engine
    from ramet.program.scripted import ScriptedBackend

set_default_runtime = set_default_backend

_LAZY = {
    "Engine": "ramet.lang.engine_door",
    "OpenAI": "ramet.lang.backends.openai_endpoint",
    "Runtime": "ramet.lang.backends.server_process",
    "RuntimeEndpoint": "ramet.lang.backends.runtime_endpoint",
    "ScriptedBackend": "ramet.program.scripted",
}

__all__ = [
    "Engine",
    "Function",
    "OpenAI",
    "ProgramState",
    "Runtime",
    "RuntimeEndpoint",
    "ScriptedBackend",
    "State",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "call",
    "errors",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "host",
    "image",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "set_default_runtime",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ramet' has no attribute {name!r}")
