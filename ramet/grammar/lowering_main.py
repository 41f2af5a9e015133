"""The process behind `lowering_process`: a line with a constraint in, a line with its lowered form, or what is wrong with it, out."""

from __future__ import annotations

import json
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
    _say({})
    for line in sys.stdin:
        _say(_answer(compiler, json.loads(line)))


def _answer(compiler: LlguidanceCompiler, question: dict[str, Any]) -> dict[str, Any]:
    try:
        lowered = lower(question["kind"], question["source"], question["whitespace"])
        compiler.assemble(lowered)
        return {"lowered": lowered.dump()}
    except GrammarError as error:
        return {"message": error.message, "where": error.where, "param": error.param}
    except RametError as error:
        return {"message": error.message, "where": None, "param": error.param}
    except MemoryError:
        return {"message": f"{question['kind']}: compiling it needs too much memory", "where": None, "param": question["kind"]}
    except Exception as error:  # the parent makes an InternalError of it, and logs it
        return {"internal": f"{type(error).__name__}: {error}"}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, separators=(",", ":")) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
