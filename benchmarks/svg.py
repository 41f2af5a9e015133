"""The frame of a benchmark's picture: a white page, its texts' style, and a legend."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def picture(width: int, height: int, body: str, *, heading: int = 13) -> str:
    """An SVG document. Texts are 11 px; those of class h are bold and `heading` px."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style>text{{font:11px sans-serif;fill:#333}}.h{{font:bold {heading}px sans-serif}}</style>"
        f'<rect width="{width}" height="{height}" fill="#fff"/>{body}</svg>\n'
    )


def legend(entries: Iterable[tuple[str, str]], left: int, top: int, pitch: int) -> str:
    """A square and a name for each (name, colour), `pitch` apart."""
    return "".join(
        f'<rect x="{left + pitch * place}" y="{top}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{left + 14 + pitch * place}" y="{top + 9}">{escape(name)}</text>'
        for place, (name, colour) in enumerate(entries)
    )
