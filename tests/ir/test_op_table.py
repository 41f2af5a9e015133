"""docs/ir.md shows the ops as the code has them. RAMET_WRITE_GOLDEN=1 rewrites its tables."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ramet.ir.op_table import builtin_list, op_table, type_list
from ramet.ir.ops import OPS

PAGE = Path(__file__).parent.parent.parent / "docs" / "ir.md"


@pytest.mark.parametrize(("mark", "text"), [("types", type_list()), ("ops", op_table()), ("builtins", builtin_list())])
def test_page_is_up_to_date(mark: str, text: str) -> None:
    page = PAGE.read_text()
    pattern = re.compile(rf"<!-- {mark} -->\n(.*?)(?=\n#|\n`state` is)", re.DOTALL)
    wanted = pattern.sub(lambda _: f"<!-- {mark} -->\n\n{text}", page)
    if os.environ.get("RAMET_WRITE_GOLDEN"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted, "docs/ir.md is behind the code; RAMET_WRITE_GOLDEN=1 rewrites it"


def test_every_op_says_what_it_means() -> None:
    assert all((cls.__doc__ or "").strip().endswith(".") for cls in OPS.values())
    assert len(OPS) == 24
