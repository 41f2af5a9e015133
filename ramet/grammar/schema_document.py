"""A JSON schema as it was written: every subschema by its JSON pointer, references resolved, every keyword known or refused."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from ramet.errors import GrammarError
from ramet.grammar.schema_resources import NEWEST, Resources, draft_of, escape

ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "example", "$comment", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$vocabulary", "$defs", "definitions"),
        *("discriminator", "externalDocs", "xml", "contentEncoding", "contentMediaType", "contentSchema"),
        *("markdownDescription", "enumDescriptions", "markdownEnumDescriptions", "enumNames", "enumItemLabels", "propertyOrdering"),
        *("deprecationMessage", "markdownDeprecationMessage", "errorMessage", "patternErrorMessage", "defaultSnippets"),
        *("doNotSuggest", "suggestSortText", "allowComments", "allowTrailingCommas", "fileMatch", "self", "tsType", "tsEnumNames"),
        *("javaType", "javaEnumNames", "javaInterfaces", "existingJavaType"),
    )
)
"""They say nothing about which values are valid: the standard's, OpenAPI's, and those of editors, registries and code generators."""
UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
SUBSCHEMAS = ("not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames", "additionalItems", *UNEVALUATED)
SUBSCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SUBSCHEMA_MAPS = ("properties", "patternProperties", "dependentSchemas")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")
HIGHEST = frozenset(key for key in COUNTS if key.startswith("max"))
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
PLAIN = (
    "type",
    "enum",
    "const",
    "nullable",
    "$ref",
    "$dynamicRef",
    "required",
    "dependentRequired",
    "dependencies",
    "uniqueItems",
    "pattern",
    "format",
)
ENFORCED = frozenset({*SUBSCHEMAS, *SUBSCHEMA_LISTS, *SUBSCHEMA_MAPS, *COUNTS, *NUMBERS, *PLAIN})
REFUSED = {"$recursiveRef": "use $ref", "$recursiveAnchor": "use $anchor"}
EXCLUSIVE = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
MAX_COUNT = 2**31 - 1
"""The engine's limit. No text is so long: a larger upper count says nothing, a larger lower one cannot be met."""
TYPES = ("null", "boolean", "number", "integer", "string", "array", "object")


class Document:
    """Subschemas are named by their pointers ("" is the root). `add` takes in subschemas made up along the way."""

    def __init__(self, root: Any) -> None:
        self.never = "never'"
        self.schemas: dict[str, Any] = {self.never: False}
        self._root = root
        self._checked: set[str] = set()
        self._resources = Resources(root)
        self._draft = draft_of(root)

    def add(self, pointer: str, schema: Any) -> str:
        schema = _modern(schema, is_plain=self._draft is None)
        if self.schemas.setdefault(pointer, schema) != schema:
            pointer = self.add(pointer + "'", schema)
        return pointer

    def child(self, pointer: str, *path: str | int) -> str:
        """Names the subschema at `path` below `pointer`."""
        schema = self.schemas[pointer]
        for step in path:
            schema = schema[step]
            pointer += f"/{escape(str(step))}"
        return self.add(pointer, schema)

    def checked(self, pointer: str) -> Any:
        """The subschema, its keywords looked through."""
        schema = self.schemas[pointer]
        if pointer not in self._checked:
            self._checked.add(pointer)
            _check(schema, pointer)
            _check_draft(schema, self._draft or NEWEST, pointer)
        return schema

    def resolve(self, keyword: str, pointer: str) -> str:
        """The pointer that the `$ref` or `$dynamicRef` of the subschema at `pointer` leads to."""
        where, reference = f"{pointer}/{keyword}", self.schemas[pointer][keyword]
        found = self._resources.find(reference, pointer.replace("'", ""))
        if found is None:
            refuse(f"{reference!r} leads out of the schema; only references into it are followed", where)
        resource, fragment = found
        if fragment and not fragment.startswith("/"):
            return self.add(*self._at(self._anchor(resource, fragment, keyword, where), reference, where))
        return self.add(*self._at(resource + fragment, reference, where))

    def _at(self, pointer: str, reference: str, where: str) -> tuple[str, Any]:
        steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
        target: Any = self._root
        for step in steps:
            target = _descend(target, step, reference, where)
        return "".join(f"/{escape(step)}" for step in steps), target

    def _anchor(self, resource: str, name: str, keyword: str, where: str) -> str:
        places = self._resources.anchors.get((resource, name), [])
        if not places:
            refuse(f"no $anchor is named {name!r}", where)
        if keyword == "$dynamicRef" and len(self._resources.dynamic.get(name, ())) > 1 and places[0] in self._resources.dynamic[name]:
            refuse(f"{name!r} is a $dynamicAnchor of several schemas, and which one is meant depends on the way there; use $ref", where)
        return places[0]


def refuse(what: str, pointer: str) -> NoReturn:
    raise GrammarError(f"json_schema: {what}", where=pointer.replace("'", "").removeprefix("!") or "#", param="json_schema")


def _descend(target: Any, step: str, reference: str, where: str) -> Any:
    if isinstance(target, Mapping) and step in target:
        return target[step]
    if isinstance(target, list) and step.isdecimal() and int(step) < len(target):
        return target[int(step)]
    refuse(f"nothing is at {reference!r}", where)


def _modern(schema: Any, is_plain: bool) -> Any:
    """A schema with the exclusive bounds of draft 4, which say yes or no about their neighbour, as they are written since. `nullable` is
    OpenAPI's: where `$schema` names a draft (it is not `is_plain`), null is not valid. Counts that no text comes up to are left out."""
    if not isinstance(schema, Mapping):
        return schema
    ignored = {key for key in HIGHEST & schema.keys() if _is_count(schema[key]) and schema[key] > MAX_COUNT}
    ignored |= {"nullable"} if not is_plain and schema.get("nullable") is True else set()
    if not ignored and not any(isinstance(schema.get(key), bool) for key in EXCLUSIVE):
        return schema
    found = {key: value for key, value in schema.items() if key not in ignored}
    for exclusive, bound in EXCLUSIVE.items():
        if isinstance(schema.get(exclusive), bool) and (bound in schema or not schema[exclusive]):
            del found[exclusive]
            if schema[exclusive]:
                found[exclusive] = found.pop(bound)
    return found


# ── what stands where ──


def _check(schema: Any, pointer: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        refuse(f"a schema is an object or true or false, not {str(schema)[:40]}", pointer)
    for key, value in schema.items():
        where = f"{pointer}/{escape(key)}"
        if key in REFUSED:
            refuse(REFUSED[key], where)
        if key not in ENFORCED and key not in ANNOTATIONS and not key.startswith("x-"):
            near = get_close_matches(key, [*ENFORCED, *ANNOTATIONS], n=1)
            refuse(f"the keyword {key!r} is not known" + (f"; did you mean {near[0]!r}?" if near else ""), where)
        _check_value(key, value, where)


def _check_draft(schema: Any, draft: int, pointer: str) -> None:
    """What an older draft does not know, and what would be taken for more there than here."""
    if isinstance(schema, bool) or draft >= NEWEST:
        return
    if "prefixItems" in schema and "items" in schema:
        refuse(
            f"is not known to the draft that $schema names ({draft}), where items are about all; name 2020-12, or none",
            f"{pointer}/prefixItems",
        )
    if draft <= 7 and "contains" in schema and schema.get("minContains", 1) < 1:
        refuse(
            f"is not known to the draft that $schema names ({draft}), where contains asks for one; name 2020-12, or none",
            f"{pointer}/minContains",
        )


def _check_value(key: str, value: Any, where: str) -> None:
    if key in COUNTS:
        _check_count(value, where)
    if key in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
        refuse("must be a number", where)
    if key == "multipleOf" and value <= 0:
        refuse("must be greater than 0", where)
    if key in SUBSCHEMA_LISTS and not (isinstance(value, list) and value):
        refuse("must be a list of schemas, not empty", where)
    if key in SUBSCHEMA_MAPS and not isinstance(value, Mapping):
        refuse("must be an object", where)
    if key in ("pattern", "format", "$ref", "$dynamicRef", "$id", "$anchor", "$dynamicAnchor") and not isinstance(value, str):
        refuse("must be a string", where)
    if key in ("uniqueItems", "nullable") and not isinstance(value, bool):
        refuse("must be true or false", where)
    if key == "required" and not _is_names(value):
        refuse("must be a list of names", where)
    if key in ("dependentRequired", "dependencies"):
        _check_needs(key, value, where)
    if key == "enum" and not isinstance(value, list):
        refuse("must be a list of values", where)
    if key == "type":
        _check_type(value, where)


def _check_count(value: Any, where: str) -> None:
    if not _is_count(value):
        refuse("must be a whole number, 0 or more", where)
    if value > MAX_COUNT:
        refuse(f"is more than any text holds; the limit is {MAX_COUNT}", where)


def _check_needs(key: str, value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        refuse("must be an object", where)
    for name, needs in value.items():
        if not _is_names(needs) and (key == "dependentRequired" or isinstance(needs, list)):
            refuse("must be a list of names", f"{where}/{escape(name)}")


def _check_type(value: Any, where: str) -> None:
    for name in value if isinstance(value, list) else [value]:
        if name not in TYPES:
            near = get_close_matches(str(name), TYPES, n=1)
            refuse(f"{str(name)!r} is not a type" + (f"; did you mean {near[0]!r}?" if near else f"; types: {', '.join(TYPES)}"), where)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value >= 0 and value == int(value)
