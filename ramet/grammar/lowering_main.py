"""The process behind `lowering_nursery`. It imports what compiling needs and warms it up, once; then, for each connection that it is
handed, it forks a child, which takes a line with a constraint and answers with its lowered form, or with what is wrong with it."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import signal
import socket
import sys
from typing import Any

from ramet.errors import GrammarError, RametError
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import Lowered, lower
from ramet.grammar.matcher import Vocabulary

MAX_RECURSION = 5000
NICER_WHEN_WARM = 5
LIGHT_TEXT = 1 << 14
LIGHT_DEPTH = 500
"""Parentheses, however they are nested."""
LIGHT_CHOICE = 1 << 19
ENDLESS = re.compile(r"[*+&~]|(?<!\\x)\{")
"""What repeats, intersects or takes away. Without it a text takes time and memory in proportion to its length."""
WARM_UP: dict[str, Any] = {
    "properties": {
        "a": {"type": "string", "pattern": r"^\d\w\s", "format": "date-time"},
        "b": {"type": "number", "minimum": 0.5},
        "c": {"items": {"enum": ["x", 1]}, "maxItems": 3},
    },
    "required": ["a"],
}
COMMON: tuple[dict[str, Any], ...] = (
    *({"type": kind} for kind in ("string", "number", "integer", "array", "object")),
    *({"type": "integer", "minimum": low} for low in (0, 1)),
    *({"type": "string", "format": name} for name in ("date", "time", "email", "uuid", "uri", "hostname", "ipv4", "ipv6", "duration")),
)
"""What many schemas hold. Expressions of it are remembered, see `copied_expressions`."""
IDLE_SECONDS = 5.0
"""Until it is made ahead."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the control socket
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are gone when they end
    os.setpgid(0, 0)
    control, limit = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]) << 20
    sys.setrecursionlimit(MAX_RECURSION)
    pieces = tuple(bytes([byte]) for byte in range(256))
    compiler = LlguidanceCompiler(Vocabulary((*pieces, b""), frozenset({256}), (256,), 257), bounded=False)
    compiler.assemble(lower("json_schema", json.dumps(WARM_UP)))
    os.nice(NICER_WHEN_WARM)
    common = [json.dumps(schema) for schema in COMMON]
    while connections := _next_connections(control, common):
        gc.freeze()
        if os.fork() == 0:
            control.close()
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            _serve(compiler, socket.socket(fileno=connections[0]))
            os._exit(0)
        os.close(connections[0])
    os.killpg(0, signal.SIGKILL)  # the parent is gone


def _next_connections(control: socket.socket, common: list[str]) -> list[int]:
    """None: there will be no more. While none comes, what is `common` is made here once, so that no child has to."""
    patience = IDLE_SECONDS
    while common and not select.select([control], [], [], patience)[0]:
        lower("json_schema", common.pop())
        patience = 0.0
    return list(socket.recv_fds(control, 1, 1)[1])


def _serve(compiler: LlguidanceCompiler, connection: socket.socket) -> None:
    """Two lines for each that comes; the very first says which process this is."""
    connection.sendall(b"%d\n" % os.getpid())
    for line in connection.makefile("rb"):
        head, language = _answer(compiler, json.loads(line))
        connection.sendall(json.dumps(head, separators=(",", ":")).encode() + b"\n" + language + b"\n")


def _answer(compiler: LlguidanceCompiler, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What is wrong comes with an empty second line."""
    try:
        lowered = lower(question["kind"], question["source"], question["whitespace"])
        if not _is_light(lowered):
            compiler.assemble(lowered)
        head, language = lowered.dump()
        return {"lowered": head}, language
    except (MemoryError, SystemError):  # the interpreter, too, says so when memory ends; what is left of it is not to be relied on
        os._exit(1)
    except Exception as error:  # the parent makes an InternalError of what is none of the constraint's faults, and logs it
        return _fault(error), b""


def _is_light(lowered: Lowered) -> bool:
    """Not worth a trial: text of our own making, so flat and so short, or so plain, that it takes the engine a few ten milliseconds, or
    its own limits end it by then."""
    text = lowered.text
    if lowered.kind != "json_schema" or text.count("(") > LIGHT_DEPTH:
        return False
    return len(text) <= LIGHT_TEXT or (len(text) <= LIGHT_CHOICE and ENDLESS.search(text) is None)


def _fault(error: Exception) -> dict[str, Any]:
    if isinstance(error, RametError):
        where = error.where if isinstance(error, GrammarError) else None
        return {"message": error.message, "where": where, "param": error.param}
    return {"internal": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
