"""Extract a typed object: the schema constrains the text, and the variable is the validated instance.

`Invoice` here validates by hand, so that the example needs nothing installed; any pydantic model class works in its place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from connect import connect

import ramet as sgl


@dataclass(frozen=True)
class Invoice:
    customer: str
    total: int
    paid: bool

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        properties = {
            "customer": {"type": "string", "maxLength": 40},
            "total": {"type": "integer", "minimum": 0, "maximum": 100000},
            "paid": {"type": "boolean"},
        }
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    @classmethod
    def model_validate_json(cls, text: str) -> Invoice:
        return cls(**json.loads(text))


@sgl.function
def extract(s, letter):
    s += sgl.user("Extract the invoice as JSON with customer, total and paid.\n\n" + letter)
    s += sgl.assistant(sgl.gen("invoice", json_schema=Invoice, max_tokens=256, temperature=0))
    return s["invoice"]


def main() -> None:
    connect(__doc__)
    state = extract.run("Dear Ms Lovelace, we thank you for your payment of 1815 euros.")
    invoice = state.value
    print(f"{invoice.customer!r} owes {0 if invoice.paid else invoice.total}: {invoice}")


if __name__ == "__main__":
    main()
