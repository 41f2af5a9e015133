"""`ramet compile FILE:FUNCTION`: what the compiler makes of a program."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ramet.compiler.cfg import Graph
from ramet.compiler.default_order import DEFAULT, PASS_NAMES
from ramet.compiler.diagnostics import CompileError
from ramet.compiler.driver import CompiledProgram, compile_program
from ramet.compiler.explain import explain
from ramet.compiler.picture import to_dot, to_svg
from ramet.compiler.pipeline import Pass
from ramet.compiler.scope import ProgramObject, Verbs
from ramet.errors import InvalidRequest, RametError
from ramet.ir.module import Module
from ramet.ir.printer import print_module
from ramet.wire.codec import encode

FORMS = ("ir", "cfg", "wire", "svg", "dot", "explain")


def main(argv: Sequence[str], verbs: Verbs) -> int:
    """Prints the form asked for; returns the exit status. `verbs` is the language's own table."""
    options = _parser().parse_args(argv)
    try:
        program = _load(options.program, verbs)
        pipeline = DEFAULT.without(options.disable_pass)
        compiled = compile_program(
            program, verbs, pipeline=pipeline, between=_printer(options.locations) if options.print_after_all else None
        )
    except (CompileError, InvalidRequest) as error:
        print(error, file=sys.stderr)
        return 1
    print(_render(compiled, options.emit, options.locations), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ramet compile", description="Compile a program and show what becomes of it.")
    parser.add_argument("program", metavar="FILE:FUNCTION", help="a Python file and the name of a decorated function in it")
    parser.add_argument("--emit", choices=FORMS, default="ir", help="what to print (default: ir)")
    parser.add_argument("--print-after-all", action="store_true", help="print the module after each pass, to stderr")
    parser.add_argument("--disable-pass", action="append", default=[], metavar="PASS", help=f"leave a pass out: {', '.join(PASS_NAMES)}")
    parser.add_argument("--locations", action="store_true", help="print source locations in the IR")
    return parser


def _load(place: str, verbs: Verbs) -> ProgramObject:
    file, _, name = place.rpartition(":") if ":" in place else (place, "", "")
    path = Path(file)
    if not path.is_file():
        raise InvalidRequest(f"there is no file {file!r}; write FILE:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))  # as Python does for a script: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise InvalidRequest(f"{path} cannot be loaded: {error}") from error
    except RametError as error:
        advice = 'put what runs programs under `if __name__ == "__main__":`'
        raise InvalidRequest(f"{path} runs something while it is loaded, which failed ({error}); {advice}") from error
    found: Any = getattr(module, name, None)
    program = verbs.program_of(found) if found is not None else None
    if program is None:
        known = [each for each, value in vars(module).items() if verbs.program_of(value) is not None]
        wrong = f"{path.name} has no program {name!r}" if name else f"write which program of {path.name}, as FILE:FUNCTION"
        raise InvalidRequest(f"{wrong}; programs: {', '.join(known) or 'none'}")
    return program


def _printer(locations: bool) -> Any:
    def show(each: Pass, module: Module) -> None:
        print(f"; after {each.name}\n{print_module(module, locations=locations)}", file=sys.stderr)

    return show


def _render(compiled: CompiledProgram, form: str, locations: bool) -> str:
    match form:
        case "wire":
            return encode(compiled.module).decode() + "\n"
        case "svg":
            return to_svg(compiled.module)
        case "dot":
            return to_dot(compiled.module)
        case "cfg":
            return "".join(_graph(name, graph) for name, graph in compiled.graphs.items())
        case "explain":
            return explain(compiled)
    return print_module(compiled.module, locations=locations)


def _graph(name: str, graph: Graph) -> str:
    lines = [
        f"  node {node.id} -> {', '.join(map(str, node.successors())) or 'end'}  ({len(node.steps)} steps, {type(node.end).__name__})"
        for node in graph.nodes
    ]
    return "\n".join([f"graph {name}", *lines]) + "\n"
