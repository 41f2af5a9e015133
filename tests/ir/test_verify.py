"""Each rule of the verifier, broken once."""

from __future__ import annotations

import pytest

from ramet.ir.parser import parse_module
from ramet.ir.verify import DominanceError, ForkBoundError, LinearityError, StructureError, TypeMismatch, VerificationError, verify

HEAD = "func main(x)\n^0(%0:state, %1:json)\n"
BROKEN: dict[str, tuple[str, type[VerificationError], str]] = {
    "state used twice": ('  %2:state = append %0, [%1] shape=["text"]\n  return %0, %1', LinearityError, "continued twice"),
    "state used again in a loop": (
        "  br ^1()\n^1()\n  %2:state = append %0, [] shape=[]\n  cond_br %1, ^1(), ^2()\n^2()\n  %3:state = open []\n  return %3, %1",
        LinearityError,
        "continued twice",
    ),
    "one jump carries it twice": (
        "  br ^1(%0, %0)\n^1(%2:state, %3:state)\n  return %2, %1",
        LinearityError,
        "one jump passes a conversation twice",
    ),
    "value of one arm only": (
        "  cond_br %1, ^1(), ^2()\n^1()\n  %2:int = const value=1\n  br ^2()\n^2()\n  return %0, %2",
        DominanceError,
        "may not have been computed",
    ),
    "value before it is made": (
        '  %3:json = call [%2] function="str"\n  %2:int = const value=1\n  return %0, %3',
        DominanceError,
        "may not",
    ),
    "state where a value is meant": ("  %2:list = make_list [%0]\n  return %0, %2", TypeMismatch, "is a state"),
    "value where a state is meant": ("  return %1, %1", TypeMismatch, "is a json"),
    "wrong result": ('  %2:int = call [%1] function="str"\n  return %0, %2', TypeMismatch, "cannot be a int"),
    "jump with a wrong type": ("  br ^1(%1)\n^1(%2:state)\n  return %2, %1", TypeMismatch, r"takes \(state\)"),
    "jump to nowhere": ("  br ^7()", StructureError, "no block to jump to"),
    "jump to the entry": ("  br ^0(%0, %1)", StructureError, "no block to jump to"),
    "missing argument": ("  br ^1()\n^1(%2:state)\n  return %2, %1", StructureError, "takes 1 arguments, 0"),
    "no terminator": ("  %2:int = const value=1", StructureError, "must end"),
    "unknown builtin": ('  %2:json = call [%1] function="open"\n  return %0, %2', StructureError, "no builtin 'open'"),
    "unknown function": (
        '  %2:state, %3:json = program_call %0, [] function="other"\n  return %2, %3',
        StructureError,
        "no function 'other'",
    ),
    "unknown role": ('  %2:state = append %0, [] shape=["begin:root"]\n  return %2, %1', StructureError, "is no piece"),
    "shape without text": ('  %2:state = append %0, [] shape=["text"]\n  return %2, %1', StructureError, "disagree"),
    "argument without name": ("  %2:state, %3:json = gen %0, _, [%1]\n  return %2, %3", StructureError, "needs its name"),
    "fork too wide": (
        "  %2:int = const value=100000\n  %3:state, %4:group = fork %0, %2, []\n  return %3, %1",
        ForkBoundError,
        "100000 ways",
    ),
    "fork by a text": (
        '  %2:text = const value="3"\n  %3:state, %4:group = fork %0, %2, []\n  return %3, %1',
        ForkBoundError,
        "'3' ways",
    ),
    "defined twice": ("  %1:int = const value=1\n  return %0, %1", StructureError, "defined twice"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_violations_are_named(name: str) -> None:
    body, error, complaint = BROKEN[name]
    with pytest.raises(error, match=complaint):
        verify(parse_module(HEAD + body))


def test_the_arms_of_a_branch_may_each_carry_a_conversation_on() -> None:
    verify(parse_module(HEAD + "  cond_br %1, ^1(%0), ^2()\n^1(%2:state)\n  return %2, %1\n^2()\n  return %0, %1"))
    verify(parse_module(HEAD + "  cond_br %1, ^1(%0, %1), ^1(%0, %1)\n^1(%2:state, %3:json)\n  return %2, %3"))
