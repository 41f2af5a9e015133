"""The proof that compiling keeps the meaning: random programs run interpreted, lowered, with one pass alone and with all passes, on a
backend whose answers are a pure hash of the prompt and the parameters. Value, transcript, variables and host calls must agree."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from ramet.compiler.default_order import DEFAULT, PASS_NAMES
from ramet.compiler.diagnostics import CompileError
from ramet.compiler.pipeline import Notes
from ramet.ir.parser import parse_module
from ramet.ir.printer import print_module
from ramet.wire.codec import decode, encode
from tests.compiler.language import compiled, define, executed, interpreted
from tests.property.program_maker import ProgramMaker
from tests.waiting import PATIENCE

NUM_PROGRAMS = int(os.environ.get("RAMET_NUM_PROGRAMS", "2000"))
CHUNK = 100
ARGUMENTS = {"topic": "sky", "size": 2, "items": ["u", "v w"]}


@pytest.mark.parametrize("first", range(0, NUM_PROGRAMS, CHUNK))
def test_all_ways_of_running_agree(first: int) -> None:
    asyncio.run(_assert_agree(range(first, first + CHUNK)))


async def _assert_agree(seeds: range) -> None:
    ended_well = 0
    for seed in seeds:
        ended_well += await _one(seed)
    assert ended_well > len(seeds) // 2, "most generated programs should run to their end, or they prove little"


async def _one(seed: int) -> bool:
    source = ProgramMaker(seed).program()
    log: list[Any] = []
    function = define(source, LOG=log)
    async with asyncio.timeout(PATIENCE):
        expected = await interpreted(function, ARGUMENTS, log)
        try:
            program = compiled(function)
        except CompileError as error:
            raise AssertionError(f"seed {seed} must compile: {error}\n{source}") from error
        alone = PASS_NAMES[seed % len(PASS_NAMES)]
        ways = {"lowered": program.lowered, alone: DEFAULT.only(alone).run(program.lowered, Notes())[0], "all passes": program.module}
        if seed % 10 == 0:
            ways["over the wire"] = decode(encode(program.module))
            assert parse_module(print_module(program.module)) == program.module
        for way, module in ways.items():
            found = await executed(program, module, ARGUMENTS, log)
            assert found == expected, f"seed {seed}, {way}:\n{source}\ninterpreted {expected}\ncompiled    {found}"
    return not expected.error
