"""Texts with data in them, and the schema under which it is extracted. Every string and number of the schema is bounded."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema

_NAMES = ("Maria Lindgren", "Paul Okafor", "Aino Virtanen", "Tomás Herrera", "Keiko Mori", "Samuel Osei", "Lena Fischer", "Ravi Menon")
_JOBS = ("marine biologist", "translator", "civil engineer", "beekeeper", "paediatrician", "photographer", "locksmith", "surveyor")
_CITIES = ("Gothenburg", "Cork", "Tampere", "Valparaíso", "Sendai", "Kumasi", "Freiburg", "Kochi")
_TEXT: dict[str, Any] = {"type": "string", "maxLength": 32}
_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 99999}


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMA = _record(
    person=_record(first_name=_TEXT, last_name=_TEXT, occupation=_TEXT, age=_NUMBER),
    location=_record(city=_TEXT, country_code={"type": "string", "pattern": "^[A-Z]{2}$"}),
    category={"enum": ["people", "commerce", "culture", "transport"]},
    team_size=_NUMBER,
    is_retired={"type": "boolean"},
)


def question(generator: Random) -> str:
    """In the model's chat format."""
    name, job, city = (generator.choice(words) for words in (_NAMES, _JOBS, _CITIES))
    text = f"{name}, {generator.randint(21, 67)}, a {job} from {city}, leads a team of {generator.randint(2, 40)}."
    return f"<|im_start|>user\nExtract the data of this text as JSON.\nText: {text}<|im_end|>\n<|im_start|>assistant\n"


def is_valid(text: str) -> bool:
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True
