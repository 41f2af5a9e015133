"""Pictures without dependencies: the blocks of a function as DOT or SVG, in layers by distance from the entry."""

from __future__ import annotations

from html import escape

from ramet.ir.control_flow import reverse_postorder, successors
from ramet.ir.module import Block, Function, Module
from ramet.ir.ops import Gen, HostCall, ProgramCall, Select
from ramet.ir.printer import print_op

_CHAR, _LINE, _GAP, _PAD, _MAX = 6.6, 14, 36, 8, 92
_WAITING = (Gen, Select, HostCall, ProgramCall)


def to_dot(module: Module) -> str:
    """For graphviz: one cluster per function."""
    lines = ["digraph program {", '  node [shape=box fontname="monospace" fontsize=9];']
    for number, function in enumerate(module.functions):
        lines += [f"  subgraph cluster_{number} {{", f'    label="{function.name}";']
        for block in function.blocks:
            text = "\\l".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in _lines(block))
            lines.append(f'    b{number}_{block.id} [label="{text}\\l"];')
        for block_id, nexts in successors(function).items():
            lines += [f"    b{number}_{block_id} -> b{number}_{following};" for following in nexts]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(module: Module) -> str:
    """The functions one below the other."""
    body: list[str] = []
    top, width = 10.0, 100.0
    for function in module.functions:
        drawn, right, bottom = _draw(function, top)
        body += drawn
        top, width = bottom + _GAP, max(width, right)
    style = "<style>text{font:11px monospace;white-space:pre}.g{fill:#0a5}.t{font-weight:bold}</style>"
    arrow = (
        '<defs><marker id="a" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto"><path d="M0,0L7,3L0,6z"/></marker></defs>'
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 20:.0f}" height="{top:.0f}">{style}{arrow}{"".join(body)}</svg>\n'


def _draw(function: Function, top: float) -> tuple[list[str], float, float]:
    title = f'<text class="t" x="10" y="{top + 10:.0f}">{escape(function.name)}({escape(", ".join(function.params))})</text>'
    boxes, bottom = _place(function, top + 20)
    drawn = [title]
    for block in function.blocks:
        if block.id in boxes:
            drawn += _box(block, *boxes[block.id])
    for block_id, nexts in successors(function).items():
        drawn += [_edge(boxes[block_id], boxes[following]) for following in nexts if block_id in boxes]
    return drawn, max(x + w for x, _, w, _ in boxes.values()), bottom


def _place(function: Function, top: float) -> tuple[dict[int, tuple[float, float, float, float]], float]:
    """Block → x, y, width, height. A layer holds the blocks with the same longest forward distance from the entry."""
    order = reverse_postorder(function)
    rank, layer = {block: i for i, block in enumerate(order)}, dict.fromkeys(order, 0)
    nexts = successors(function)
    for block in order:
        for following in nexts[block]:
            if rank[following] > rank[block]:
                layer[following] = max(layer[following], layer[block] + 1)
    boxes: dict[int, tuple[float, float, float, float]] = {}
    for number in range(max(layer.values()) + 1):
        x, tallest = 10.0, 0.0
        for block in (each for each in order if layer[each] == number):
            lines = _lines(function.block(block))
            width, height = max(map(len, lines)) * _CHAR + 2 * _PAD, len(lines) * _LINE + 2 * _PAD
            boxes[block] = (x, top, width, height)
            x, tallest = x + width + _GAP, max(tallest, height)
        top += tallest + _GAP
    return boxes, top


def _lines(block: Block) -> list[str]:
    args = ", ".join(f"%{value.id}:{value.type}" for value in block.args)
    return [f"^{block.id}({args})", *(_short(print_op(op)) for op in block.ops)]


def _short(text: str) -> str:
    return text if len(text) <= _MAX else text[: _MAX - 1] + "…"


def _box(block: Block, x: float, y: float, width: float, height: float) -> list[str]:
    drawn = [f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" fill="#fff" stroke="#555"/>']
    for number, line in enumerate(_lines(block)):
        waits = number > 0 and isinstance(block.ops[number - 1], _WAITING)
        style, place = ' class="g"' if waits else "", f'x="{x + _PAD:.0f}" y="{y + _PAD + (number + 0.8) * _LINE:.0f}"'
        style, place = ' class="g"' if waits else "", f'x="{x + _PAD:.0f}" y="{y + _PAD + (number + 0.8) * _LINE:.0f}"'
        drawn.append(f"<text{style} {place}>{escape(line)}</text>")
    return drawn


def _edge(start: tuple[float, float, float, float], end: tuple[float, float, float, float]) -> str:
    x1, y1, x2, y2 = start[0] + start[2] / 2, start[1] + start[3], end[0] + end[2] / 2, end[1]
    bend = (y2 - y1) / 2 if y2 > y1 else -_GAP
    color = "#888" if y2 > y1 else "#c60"  # a loop's way back
    path = f"M{x1:.0f},{y1:.0f}C{x1:.0f},{y1 + abs(bend):.0f} {x2:.0f},{y2 - abs(bend):.0f} {x2:.0f},{y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="{color}" marker-end="url(#a)"/>'
