"""The process behind `lowering_process`: a line with a constraint in, a line with its lowered form, or what is wrong with it, out."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from ramet.errors import GrammarError, RametError
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from ramet.grammar.matcher import Vocabulary

MAX_RECURSION = 5000


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes stdin
    limit = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.setrecursionlimit(MAX_RECURSION)
    pieces = tuple(bytes([byte]) for byte in range(256))
    compiler = LlguidanceCompiler(Vocabulary((*pieces, b""), frozenset({256}), (256,), 257), bounded=False)
    _say({}, b"")
    for line in sys.stdin:
        head, language = _answer(compiler, json.loads(line))
        _say(head, language)


def _answer(compiler: LlguidanceCompiler, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What is wrong comes with an empty second line."""
    try:
        lowered = lower(question["kind"], question["source"], question["whitespace"])
        compiler.assemble(lowered)
        head, language = lowered.dump()
        return {"lowered": head}, language
    except (MemoryError, SystemError):  # the interpreter, too, says so when memory ends; what is left of it is not to be relied on
        os._exit(1)
    except Exception as error:  # the parent makes an InternalError of what is none of the constraint's faults, and logs it
        return _fault(error), b""


def _fault(error: Exception) -> dict[str, Any]:
    if isinstance(error, RametError):
        where = error.where if isinstance(error, GrammarError) else None
        return {"message": error.message, "where": where, "param": error.param}
    return {"internal": f"{type(error).__name__}: {error}"}


def _say(head: dict[str, Any], language: bytes) -> None:
    sys.stdout.buffer.write(json.dumps(head, separators=(",", ":")).encode() + b"\n" + language + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
