"""Which names the parts of a schema have: the $id of embedded ones, and anchors. They depend on the draft that `$schema` names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

NO_SCHEMAS = ("enum", "const", "default", "example", "examples")
NEWEST = 2020


def draft_of(root: Any) -> int | None:
    """3, 4, 6, 7, 2019 or 2020, as `$schema` says; None where it says nothing that is known."""
    uri = root.get("$schema") if isinstance(root, Mapping) else None
    found = re.search(r"json-schema\.org/(?:draft-0|draft/)(3|4|6|7|2019|2020)\b", uri) if isinstance(uri, str) else None
    return None if found is None else int(found[1])


class Resources:
    """Parts are named by their JSON pointers. `anchors`: (pointer of the resource, name) → pointers; `dynamic`: name → pointers."""

    def __init__(self, root: Any) -> None:
        self.anchors: dict[tuple[str, str], list[str]] = {}
        self.dynamic: dict[str, list[str]] = {}
        self._bases = {"": ""}
        self._weak: set[str] = set()
        draft = draft_of(root) or NEWEST
        self._has_id, self._is_alone = draft <= 4, draft <= 7
        self._look(root, "", "")
        self._pointers = {uri: pointer for pointer, uri in reversed(self._bases.items())}

    def find(self, reference: str, pointer: str) -> tuple[str, str] | None:
        """The resource that a reference at `pointer` leads to, and the fragment; None when it is none of these."""
        around = [base for base in self._bases if pointer == base or pointer.startswith(base + "/")]
        resource = max((base for base in around if base not in self._weak), key=len)
        base = self._base(pointer)
        uri, fragment = ("", reference[1:]) if reference.startswith("#") else urldefrag(urljoin(base, reference) or reference)
        found = resource if reference.startswith("#") else self._pointers.get(uri)
        return None if found is None else (found, unquote(fragment))

    def _base(self, pointer: str) -> str:
        return self._bases[max((base for base in self._bases if pointer == base or pointer.startswith(base + "/")), key=len)]

    def _look(self, schema: Any, pointer: str, resource: str) -> None:
        if isinstance(schema, list):
            for index, value in enumerate(schema):
                self._look(value, f"{pointer}/{index}", resource)
        elif isinstance(schema, Mapping):
            resource = self._enter(schema, pointer, resource)
            for key, value in schema.items():
                if key not in NO_SCHEMAS:
                    self._look(value, f"{pointer}/{escape(key)}", resource)

    def _enter(self, schema: Mapping[str, Any], pointer: str, resource: str) -> str:
        """Its own names, as those of draft 4 (id) and 7 ($id: "#name") too; returns the resource that it belongs to. Where the draft is not
        said to be 4, an `id` is but a name: what is inside with `#/…` leads to where later drafts say. Up to 7, `$ref` stands alone."""
        own = None if self._is_alone and "$ref" in schema else schema.get("$id", schema.get("id"))
        if isinstance(own, str) and own.startswith("#"):
            self.anchors.setdefault((resource, own[1:]), []).append(pointer)
        elif isinstance(own, str):
            self._bases[pointer] = urldefrag(urljoin(self._base(pointer), own) or own).url
            if "$id" in schema or self._has_id or not pointer:
                resource = pointer
            else:
                self._weak.add(pointer)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(key), str):
                self.anchors.setdefault((resource, schema[key]), []).append(pointer)
        if isinstance(schema.get("$dynamicAnchor"), str):
            self.dynamic.setdefault(schema["$dynamicAnchor"], []).append(pointer)
        return resource


def escape(step: str) -> str:
    """One step of a JSON pointer."""
    return step.replace("~", "~0").replace("/", "~1")
