"""The wire form: same module, same bytes; and whatever else arrives is a clear refusal, never another exception."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import UserError
from ramet.ir.module import Module
from ramet.wire.codec import MAX_BYTES, WireError, decode, digest, encode
from tests.compiler.language import compiled, define

SOURCE = """
@function
def main(s, topic):
    s += sgl.user("About " + topic)
    forks = s.fork(2)
    for f in forks:
        f += sgl.assistant(sgl.gen("answer", regex="[a-z]+", max_tokens=4))
    forks.join()
    if "x" in s["answer"]:
        return [s["answer"], 1, None, 2.5]
    return s.text()
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return compiled(define(SOURCE)).module


def test_round_trip_and_determinism(module: Module) -> None:
    encoded = encode(module)
    assert decode(encoded) == module
    assert encode(decode(encoded)) == encoded
    assert decode(encoded, digest(encoded)) == module


def test_wrong_digest_is_refused(module: Module) -> None:
    with pytest.raises(WireError, match="digest"):
        decode(encode(module), "0" * 64)


def change(module: Module, **fields: Any) -> bytes:
    return json.dumps({**json.loads(encode(module)), **fields}).encode()


def test_unknown_version_and_op_are_named(module: Module) -> None:
    with pytest.raises(WireError, match="version 1, not 'ramet-program' version 2"):
        decode(change(module, version=2))
    message = json.loads(encode(module))
    message["functions"][0]["blocks"][0]["ops"][0][0] = "rm_rf"
    with pytest.raises(WireError, match=r"unknown op 'rm_rf' \(at /functions/0/blocks/0/ops/0\)"):
        decode(json.dumps(message).encode())


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"format": "ramet-program", "version": true}',
        b'{"format": "ramet-program", "version": 1, "functions": []}',
        b'{"format": "ramet-program", "version": 1, "functions": [{"name": 3}]}',
        b'{"format": "ramet-program", "version": 1, "functions": {"a": NaN}}',
        b'{"format": "ramet-program", "version": 1, "functions": [' + b"9" * 5000 + b"]}",
        b" " * (MAX_BYTES + 1),
    ],
)
def test_hostile_bytes_cost_a_clear_error(hostile: bytes) -> None:
    with pytest.raises(UserError):
        decode(hostile)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_programs_are_refused_or_valid(data: st.DataObject) -> None:
    """One place of a valid message is replaced by anything: the answer is a module or a UserError."""
    message = json.loads(encode(MUTATED))
    node: Any = message
    while isinstance(node, dict | list) and node:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(node[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            node[key] = data.draw(ANYTHING)
            break
        node = node[key]
    try:
        decode(json.dumps(message).encode())
    except UserError as error:
        assert str(error)


MUTATED = compiled(define(SOURCE)).module
ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-3, 60)
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.integers(0, 9), max_size=3)
    | st.just({})
)


def test_a_jump_cycle_without_end_is_only_a_budget_question(module: Module) -> None:
    """Cycles in the wire form are loops; what is not a block is refused."""
    message = json.loads(encode(module))
    broken = copy.deepcopy(message)
    ops = broken["functions"][0]["blocks"][0]["ops"]
    ops[-1] = ["br", {"to": [9999, []]}, [0, 0, 0, 0]]
    with pytest.raises(UserError, match="no block to jump to"):
        decode(json.dumps(broken).encode())


def test_many_blocks_cost_little_and_are_bounded() -> None:
    def chain(length: int) -> bytes:
        place = [0, 0, 0, 0]
        types = {str(number): "state" for number in range(length + 2)} | {"1": "json", str(length + 2): "none"}
        middle = [{"id": each, "args": [each + 1], "ops": [["br", {"to": [each + 1, [each + 1]]}, place]]} for each in range(1, length)]
        end = [["const", {"out": length + 2}, place], ["return", {"state": length + 1, "value": length + 2}, place]]
        blocks = [
            {"id": 0, "args": [0, 1], "ops": [["br", {"to": [1, [0]]}, place]]},
            *middle,
            {"id": length, "args": [length + 1], "ops": end},
        ]
        function = {"name": "main", "params": ["a"], "types": types, "blocks": blocks}
        message = {"format": "ramet-program", "version": 1, "sources": [], "grammars": [], "functions": [function]}
        return json.dumps(message).encode()

    began = time.process_time()
    assert len(decode(chain(4000)).main.blocks) == 4001
    assert time.process_time() - began < 3.0
    with pytest.raises(WireError, match="more than 4096 blocks"):
        decode(chain(20_000))
