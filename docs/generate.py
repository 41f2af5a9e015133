"""Writes the pages that are made from the code: docs/json_schema.md from the cases of its tests, docs/flags.md from the options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from ramet.cli.flags import flags_markdown  # noqa: E402
from ramet.errors import GrammarError  # noqa: E402
from ramet.grammar.lowering import lower  # noqa: E402
from ramet.grammar.schema_document import ANNOTATIONS, ENFORCED, REFUSED  # noqa: E402
from ramet.grammar.string_formats import ANNOTATIONS as FREE_FORMATS  # noqa: E402
from ramet.grammar.string_formats import FORMATS, INTEGER_FORMATS  # noqa: E402
from ramet.runtime.config import ServerConfig  # noqa: E402
from tests.grammar.schema_cases import CASES  # noqa: E402
from tests.grammar.schema_cases import REFUSED as REFUSED_CASES  # noqa: E402

HEAD = """# JSON Schema

Made by `make docs` from the cases that `tests/grammar/test_json_schema.py` judges with the `jsonschema` package.

Every keyword of draft 2020-12 is enforced, or the request is refused with status 400 and the JSON pointer of the place. None is accepted
and ignored, and so is none that is not known, but for the annotations below. Older drafts' `definitions`, `dependencies`, lists of `items`,
`id`, `$id: "#name"` and exclusive bounds that are true or false are read too; what stands beside `$ref` counts. Where `$schema` names a
draft, that draft says what an `id` means, and what it does not know is refused where it would allow less than is written (`prefixItems`
before `items`, `minContains: 0`). OpenAPI's `nullable` allows null only where `$schema` names no draft.

Numbers that no float holds (`1e400`, `1e-400`) and whole ones of over 400 digits are refused wherever they stand. Counts above 2³¹ − 1,
which no text comes up to, say nothing where they are the most (`maxLength`) and are refused where they are the least.

Schemas at random, every keyword inside of every other, are judged the same way (`tests/grammar/random_schemas.py`).

A grammar writes one form of each valid value, and by what it writes it also accepts. Of a valid value this is the form:

- properties in the order of their declaration, as users of OpenAI's API expect it (`properties`, then `required`, in allOf and anyOf one
  after the other; there is no option for another order, which would take 2ⁿ places for n properties), undeclared ones
  after them; a property that only `not` or `oneOf` asks for comes last;
- compact, unless `--constrained-json-whitespace-pattern` says what may stand between tokens;
- strings and undeclared names in every spelling (as they are, short escapes, `\\uXXXX`); declared names as they are, or in ASCII;
- integers without fraction and exponent; numbers with bounds with an exponent as floats are (`5e-07`: one digit before the point, which is
  not 0) only below 0.0001 and from 1e16 on, up to the bound's last digit, and without one from 1e-30 on; numbers with multipleOf, or that
  must be no multiple, without exponent, and with at most 15 digits if they have a fraction or are no multiple; multiples of whole numbers
  above 100 without fraction; no number that floats cannot hold is written with an exponent, and none that they cannot tell from
  an exclusive bound, but under `type: integer`;
- values of `enum` and `const` as the schema writes them.

Where validators disagree about a value, it is not written: `pattern` holds what ECMA 262 and Python agree on (`\\d`, `\\w`, `\\s`, `$`
before a last newline), also under `not`. `format` is enforced, not an annotation, each as a subset of its standard that all take.
But `multipleOf` is what the standard says, arithmetic with decimal numbers: validators that divide binary floats (`jsonschema` among them)
find that 0.07 is no multiple of 0.01.
Of two undeclared properties with one name the last one counts, as it does for readers. Where `minProperties` asks for two undeclared
ones or more, and in items that `uniqueItems` compares, names and items are followed while the text is generated, and an equal one is
not written.
"""


def main() -> None:
    (ROOT / "docs" / "flags.md").write_text(flags_markdown(ServerConfig))
    (ROOT / "docs" / "json_schema.md").write_text("\n".join([HEAD.replace("\\\\", "\\"), *_keywords(), *_enforced(), *_refused()]) + "\n")


def _keywords() -> list[str]:
    listed = {
        "Enforced, within the limits below": sorted(ENFORCED),
        "Annotations, without effect": [*sorted(ANNOTATIONS), "x-…"],
        "Refused wherever they stand": sorted(REFUSED),
        "Formats": [*sorted(FORMATS), *sorted(INTEGER_FORMATS)],
        "Formats without effect": sorted(FREE_FORMATS),
    }
    return [line for title, names in listed.items() for line in (f"## {title}", "", " ".join(f"`{name}`" for name in names), "")]


def _enforced() -> list[str]:
    rows = [f"| {case.name.replace('|', '/')} | `{_cell(case.schema)}` |" for case in CASES]
    return ["## Enforced: tested cases", "", "| case | schema |", "|---|---|", *rows, ""]


def _refused() -> list[str]:
    rows = []
    for schema, where in REFUSED_CASES:
        try:
            lower("json_schema", json.dumps(schema))
        except GrammarError as error:
            rows.append(f"| `{_cell(schema)}` | `{where}` | {error.message.removesuffix(f' (at {where})').removeprefix('json_schema: ')} |")
    return ["## Refused: tested cases", "", "| schema | pointer | why |", "|---|---|---|", *rows]


def _cell(schema: object) -> str:
    return json.dumps(schema, ensure_ascii=False).replace("|", "\\|")


if __name__ == "__main__":
    main()
