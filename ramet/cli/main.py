"""The `ramet` command. Subcommands import what they need when they run, so that `ramet --help` is instant."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from ramet.errors import RametError
from ramet.version import __version__

COMMANDS = {
    "serve": ("ramet.cli.serve", "serve a model over HTTP (native and OpenAI-compatible routes)"),
    "generate": ("ramet.cli.generate", "continue a prompt with a model in this process"),
    "compile": ("ramet.cli.compile_command", "show what the compiler makes of a program: ramet compile FILE:FUNCTION"),
    "trace": ("ramet.cli.trace", "draw a program run on a server: ramet trace RUN_ID"),
    "cache": ("ramet.cli.cache", "show a server's prefix cache, or why a request missed it: ramet cache --explain RID"),
    "model": ("ramet.cli.model", "bring a model to this machine: ramet model fetch NAME"),
    "bench": ("ramet.cli.bench", "measure a server or an engine: ramet bench serving | offline | one-batch"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; each module of `COMMANDS` has `run(arguments) -> exit status`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"ramet {__version__}")
        return 0
    if words[0] not in COMMANDS:
        near = get_close_matches(words[0], COMMANDS, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are: {', '.join(COMMANDS)}"
        print(f"ramet: unknown command '{words[0]}'{hint}", file=sys.stderr)
        return 2
    return run_command(COMMANDS[words[0]][0], words[1:], name=words[0])


def run_command(module: str, arguments: Sequence[str], *, name: str) -> int:
    """Run one subcommand; what the user can mend is one line on stderr, not a traceback."""
    try:
        status: int = importlib.import_module(module).run(list(arguments))
        sys.stdout.flush()
    except RametError as error:
        print(f"ramet {name}: error: {error.message}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "ramet":
            raise
        print(f"ramet {name}: error: '{error.name}' is not installed; run: pip install 'ramet[serve]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads the output has seen enough, as in `ramet cache | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: ramet COMMAND [options]   (ramet COMMAND --help says more)", ""]
    lines += [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "  --version  print the version"])
