"""print ∘ parse is the identity, and a bad text names its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.ir.module import Block, Function, Grammar, Module, Source
from ramet.ir.ops import LAYOUTS, OPS, Op, Target
from ramet.ir.parser import IrSyntaxError, parse_module
from ramet.ir.printer import print_module
from ramet.ir.types import Location, Type, Value

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_names = st.text(st.sampled_from("abc:_"), max_size=6)


@st.composite
def some_op(draw: st.DrawFn, fresh: list[int], known: list[Value]) -> Op:
    """Any op class with any fields: text form and codec must not depend on a program being sensible."""
    cls = draw(st.sampled_from(list(OPS.values())))
    layout = LAYOUTS[cls]
    given_fields: dict[str, object] = {"loc": Location(0, draw(st.integers(0, 99)), draw(st.integers(0, 99)), draw(st.integers(0, 99)))}
    for name, role in layout.uses:
        one = st.sampled_from(known)
        given_fields[name] = draw(
            st.lists(one, max_size=3).map(tuple) if role == "operands" else one | st.none() if role == "optional" else one
        )
    for name in layout.targets:
        given_fields[name] = Target(0, tuple(draw(st.lists(st.sampled_from(known), max_size=2))))
    for name, default in layout.attributes:
        kind = {
            bool: st.booleans(),
            str: _names,
            tuple: st.lists(_names, max_size=3).map(tuple),
            dict: st.dictionaries(_names, st.integers(), max_size=2),
        }
        given_fields[name] = draw(_json if default is None else kind[type(default)])
    for name in layout.results:
        fresh[0] += 1
        value = Value(fresh[0], draw(st.sampled_from(list(Type))))
        known.append(value)
        given_fields[name] = value
    return cls(**given_fields)  # type: ignore[arg-type]


@st.composite
def some_module(draw: st.DrawFn) -> Module:
    known, fresh = [Value(0, Type.STATE), Value(1, Type.JSON)], [1]
    ops = [draw(some_op(fresh, known)) for _ in range(draw(st.integers(0, 8)))]
    function = Function("main", ("a",), (Block(0, (Value(0, Type.STATE), Value(1, Type.JSON)), tuple(ops)),))
    lines = tuple(draw(st.lists(st.text(max_size=10), max_size=3)))
    return Module((function,), (Source("dir/a b.py", 3, lines),), (Grammar("regex", draw(st.text(max_size=5))),))


@given(some_module())
def test_text_form_round_trips(module: Module) -> None:
    assert parse_module(print_module(module)) == module


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("func main()\n^0(%0:state)\n  explode %0", "line 3.*unknown op"),
        ("func main()\n^0(%0:state)\n  return %0, %9", "line 3.*%9 is not defined"),
        ("func main()\n^0(%0:banana)", "line 2.*%id:type"),
        ("func main()\n^0(%0:state)\n  %1:text = const value={", "line 3.*not JSON"),
        ("nonsense", "line 1.*expected source"),
    ],
)
def test_bad_text_names_its_line(text: str, complaint: str) -> None:
    with pytest.raises(IrSyntaxError, match=complaint):
        parse_module(text)
