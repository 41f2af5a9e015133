"""Which names the parts of a schema have: the $id of embedded ones, and anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

NO_SCHEMAS = ("enum", "const", "default", "example", "examples")


class Resources:
    """Parts are named by their JSON pointers. `anchors`: (pointer of the resource, name) → pointers; `dynamic`: name → pointers."""

    def __init__(self, root: Any) -> None:
        self.anchors: dict[tuple[str, str], list[str]] = {}
        self.dynamic: dict[str, list[str]] = {}
        self._bases = {"": ""}
        self._look(root, "", "")
        self._pointers = {uri: pointer for pointer, uri in reversed(self._bases.items())}

    def find(self, reference: str, pointer: str) -> tuple[str, str] | None:
        """The resource that a reference at `pointer` leads to, and the fragment; None when it is none of these."""
        resource = max((base for base in self._bases if pointer == base or pointer.startswith(base + "/")), key=len)
        base = self._bases[resource]
        uri, fragment = ("", reference[1:]) if reference.startswith("#") else urldefrag(urljoin(base, reference) or reference)
        found = resource if reference.startswith("#") else self._pointers.get(uri)
        return None if found is None else (found, unquote(fragment))

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
        """Its own names, as those of draft 4 (id) and 7 ($id: "#name") too; returns the resource that it belongs to."""
        own = schema.get("$id", schema.get("id"))
        if isinstance(own, str) and own.startswith("#"):
            self.anchors.setdefault((resource, own[1:]), []).append(pointer)
        elif isinstance(own, str):
            base = self._bases[resource]
            resource, self._bases[pointer] = pointer, urldefrag(urljoin(base, own) or own).url
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(key), str):
                self.anchors.setdefault((resource, schema[key]), []).append(pointer)
        if isinstance(schema.get("$dynamicAnchor"), str):
            self.dynamic.setdefault(schema["$dynamicAnchor"], []).append(pointer)
        return resource


def escape(step: str) -> str:
    """One step of a JSON pointer."""
    return step.replace("~", "~0").replace("/", "~1")
