"""Ramet: a structured generation language for LLM programs, and the runtime that executes it.

    import ramet as sgl

    @sgl.function
    def answer(s, question):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=64))

    sgl.set_default_backend(sgl.Runtime(endpoint="http://localhost:30000"))
    print(answer.run("What is a ramet?")["answer"])

Importing this module brings nothing with it: every name loads what it needs at its first use.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ramet import errors
from ramet.version import __version__

if TYPE_CHECKING:
    from ramet.lang.backends.openai_endpoint import OpenAI
    from ramet.lang.backends.runtime_endpoint import RuntimeEndpoint
    from ramet.lang.backends.server_process import Runtime
    from ramet.lang.engine_door import Engine
    from ramet.lang.function import Function, function
    from ramet.lang.host import call, host
    from ramet.lang.process import flush_cache, get_server_info, set_default_backend, set_default_runtime
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
    from ramet.program.scripted import ScriptedBackend
    from ramet.program.selection import greedy_token_selection, token_length_normalized, unconditional_likelihood_normalized

_LAZY = {
    "ramet.lang.backends.openai_endpoint": ("OpenAI",),
    "ramet.lang.backends.runtime_endpoint": ("RuntimeEndpoint",),
    "ramet.lang.backends.server_process": ("Runtime",),
    "ramet.lang.engine_door": ("Engine",),
    "ramet.lang.function": ("Function", "function"),
    "ramet.lang.host": ("call", "host"),
    "ramet.lang.process": ("flush_cache", "get_server_info", "set_default_backend", "set_default_runtime"),
    "ramet.lang.result": ("ProgramState",),
    "ramet.lang.state": ("State",),
    "ramet.lang.verbs": (
        *("assistant", "assistant_begin", "assistant_end", "gen", "gen_int", "gen_string", "image", "select", "separate_reasoning"),
        *("system", "system_begin", "system_end", "user", "user_begin", "user_end"),
    ),
    "ramet.program.scripted": ("ScriptedBackend",),
    "ramet.program.selection": ("greedy_token_selection", "token_length_normalized", "unconditional_likelihood_normalized"),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}

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


_ELSEWHERE = {
    **dict.fromkeys(("Anthropic", "LiteLLM", "VertexAI"), "sgl.OpenAI(model, base_url=…) reaches any OpenAI-compatible endpoint"),
    "video": "models read text only",
}
"""What SGLang has, and what to do here."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        advice = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"module 'ramet' has no attribute {name!r}{advice}", name=name, obj=sys.modules[__name__])
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
