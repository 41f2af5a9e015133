"""The op table of docs/ir.md, made from the classes themselves."""

from __future__ import annotations

from ramet.ir.builtins import BUILTINS
from ramet.ir.ops import LAYOUTS, OPS
from ramet.ir.types import Type


def op_table() -> str:
    """Markdown: one row per op."""
    rows = ["| op | takes | attributes | gives | meaning |", "|---|---|---|---|---|"]
    for name, cls in OPS.items():
        layout = LAYOUTS[cls]
        takes = ", ".join([_operand(field, role) for field, role in layout.uses] + [f"→{field}" for field in layout.targets])
        attributes = ", ".join(f"`{field}`" for field, _ in layout.attributes)
        meaning = " ".join((cls.__doc__ or "").split())
        rows.append(f"| `{name}` | {takes} | {attributes} | {', '.join(layout.results)} | {meaning} |")
    return "\n".join(rows) + "\n"


def builtin_list() -> str:
    """Markdown: the names that `call` knows."""
    functions = [name for name in BUILTINS if not name.startswith(".")]
    methods = [name for name in BUILTINS if name.startswith(".")]
    return f"Functions and operators: {_code(functions)}\n\nMethods: {_code(methods)}\n"


def type_list() -> str:
    return ", ".join(f"`{kind}`" for kind in Type)


def _operand(field: str, role: str) -> str:
    return {"consumes": f"**{field}**", "borrows": f"*{field}*", "operands": f"[{field}]", "optional": f"{field}?"}.get(role, field)


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
