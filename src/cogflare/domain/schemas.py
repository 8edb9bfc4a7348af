"""Reading a Cog version's OpenAPI document: what goes in, what comes out.

The document comes from a worker and is not trusted. `input_schema` rebuilds the `Input` component keyword by keyword
as a plain JSON Schema, with every local `$ref` put in place, so nothing remote, circular, endless or unknown ever
reaches the library that compiles it. A keyword that is not known here is left out: the gateway then lets the value
pass and the model judges it.

    ValueError
    └── BadSchema       the document has no meaning as a Cog schema; the message names the place
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

OutputKind = Literal["single", "iterator", "text"]

MAX_DEPTH: Final = 32
MAX_NODES: Final = 10_000
"""Schemas and enum values of one document after every reference is put in place; stops documents that unfold."""
MAX_PATTERNS: Final = 64
MAX_PATTERN_CHARS: Final = 500
_INT64: Final = 2**63

_REF_PREFIX: Final = "#/components/schemas/"
_TYPES: Final = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


class BadSchema(ValueError):
    """The worker's OpenAPI document cannot be read as a Cog schema."""


def component(openapi_schema: object, name: str) -> dict[str, Any] | None:
    """Return `components.schemas.<name>` of a Cog OpenAPI document, or None when the document has no such object."""
    found = _components(openapi_schema).get(name)
    return found if isinstance(found, dict) else None


def input_schema(openapi_schema: object) -> dict[str, Any] | None:
    """Rebuild the `Input` component as self-contained JSON Schema; None when there is none; raise `BadSchema`."""
    schemas = _components(openapi_schema)
    source = schemas.get("Input")
    if source is None:
        return None
    if isinstance(source, dict):
        # An input may always carry keys that the model does not declare.
        source = {key: value for key, value in source.items() if key != "additionalProperties"}
    return _Rebuild(schemas).node(source, "Input", nullable=False, refs=())


def output_kind(openapi_schema: object) -> OutputKind:
    """Say how the output grows: "single" value, "iterator" of values, or "text" (an iterator shown concatenated)."""
    output = _flatten(component(openapi_schema, "Output"), _components(openapi_schema))
    if output.get("x-cog-array-type") != "iterator":
        return "single"
    return "text" if output.get("x-cog-array-display") == "concatenate" else "iterator"


def has_file_outputs(openapi_schema: object) -> bool:
    """Say whether any part of the output is declared as a file (`format: uri`)."""
    schemas = _components(openapi_schema)
    pending: list[object] = [schemas.get("Output")]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        if node.get("format") == "uri":
            return True
        pending += [node.get("items"), node.get("additionalProperties")]
        if isinstance(ref := node.get("$ref"), str):
            pending.append(schemas.get(ref.removeprefix(_REF_PREFIX)))
        if isinstance(properties := node.get("properties"), dict):
            pending += properties.values()
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(branches := node.get(key), list):
                pending += branches
    return False


def is_file_output(openapi_schema: object) -> bool:
    """Say whether the output is a file, or a list or iterator of files: whatever is shown of it is a URL."""
    schemas = _components(openapi_schema)
    node = _flatten(component(openapi_schema, "Output"), schemas)
    for _ in range(MAX_DEPTH):
        if node.get("format") == "uri":
            return True
        some = node.get("anyOf")
        branches = [part for part in some if part != {"type": "null"}] if isinstance(some, list) else []
        node = _flatten(branches[0] if len(branches) == 1 else node.get("items"), schemas)
    return False


def _components(openapi_schema: object) -> dict[str, Any]:
    """Return `components.schemas`, or an empty table where the document lacks it or has something else there."""
    found: object = openapi_schema
    for key in ("components", "schemas"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _flatten(node: object, schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the `$ref` or the only `allOf` member of an output node into it, one level as Cog writes them."""
    if not isinstance(node, dict):
        return {}
    parts = node.get("allOf")
    inner = parts[0] if isinstance(parts, list) and len(parts) == 1 else node
    ref = inner.get("$ref") if isinstance(inner, dict) else None
    if isinstance(ref, str) and isinstance(target := schemas.get(ref.removeprefix(_REF_PREFIX)), dict):
        return {**target, **{key: value for key, value in node.items() if key not in ("$ref", "allOf")}}
    return node


class _Rebuild:
    """One pass over one document; owns the budgets that bound its work."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._nodes = 0
        self._patterns = 0
        self._depth = 0

    def node(self, source: object, where: str, *, nullable: bool, refs: tuple[str, ...]) -> dict[str, Any]:
        """Rebuild one schema; `nullable` comes from the wrapper around it, `refs` are the names being unfolded."""
        if source is True:
            return {}
        if not isinstance(source, dict):
            raise BadSchema(f"{where}: a schema must be an object")
        self._spend(1, where)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BadSchema(f"{where}: the schema is nested more than {MAX_DEPTH} levels deep")
        types, null_type = _types(source, where)
        nullable = nullable or null_type or source.get("nullable") is True
        built: dict[str, Any] = {}
        if types:
            built["type"] = [*types, "null"] if nullable else types
        self._enum(source, built, where, nullable)
        _limits(source, built, where)
        self._text(source, built, where)
        self._members(source, built, where, refs)
        self._combine(source, built, where, nullable, refs)
        self._depth -= 1
        return built

    def _spend(self, count: int, where: str) -> None:
        self._nodes += count
        if self._nodes > MAX_NODES:
            raise BadSchema(f"{where}: the schema unfolds to more than {MAX_NODES} parts")

    def _enum(self, source: dict[str, Any], built: dict[str, Any], where: str, nullable: bool) -> None:
        values = source.get("enum", [source["const"]] if "const" in source else None)
        if values is None:
            return
        if not isinstance(values, list) or not all(_is_scalar(value) for value in values):
            raise BadSchema(f"{where}.enum: must be a list of strings, numbers, booleans or null")
        self._spend(len(values), where)
        built["enum"] = [*values, None] if nullable and None not in values else values

    def _text(self, source: dict[str, Any], built: dict[str, Any], where: str) -> None:
        if source.get("format") == "uri":
            built["format"] = "uri"
        pattern = source.get("pattern")
        if pattern is None:
            return
        if not isinstance(pattern, str):
            raise BadSchema(f"{where}.pattern: must be a string")
        self._patterns += 1
        if len(pattern) > MAX_PATTERN_CHARS or self._patterns > MAX_PATTERNS:
            raise BadSchema(f"{where}.pattern: at most {MAX_PATTERNS} patterns of {MAX_PATTERN_CHARS} characters")
        built["pattern"] = pattern

    def _members(self, source: dict[str, Any], built: dict[str, Any], where: str, refs: tuple[str, ...]) -> None:
        required = source.get("required")
        if isinstance(required, list) and required:
            if not all(isinstance(name, str) for name in required):
                raise BadSchema(f"{where}.required: must be a list of names")
            self._spend(len(required), where)
            built["required"] = list(dict.fromkeys(required))
        properties = source.get("properties")
        if properties is not None:
            if not isinstance(properties, dict):
                raise BadSchema(f"{where}.properties: must be an object")
            built["properties"] = {
                name: self.node(value, f"{where}.{name}", nullable=False, refs=refs)
                for name, value in properties.items()
            }
        if source.get("items") is not None:
            built["items"] = self.node(source["items"], f"{where}.items", nullable=False, refs=refs)
        extra = source.get("additionalProperties")
        if extra is False:
            # Without declared properties the library could not name the key that is too much.
            built |= {"additionalProperties": False} if built.get("properties") else {"maxProperties": 0}
        elif isinstance(extra, dict):
            built["additionalProperties"] = self.node(extra, f"{where}.*", nullable=False, refs=refs)

    def _combine(
        self, source: dict[str, Any], built: dict[str, Any], where: str, nullable: bool, refs: tuple[str, ...]
    ) -> None:
        """Put references and combinations in place; a `nullable` wrapper makes what it wraps nullable too."""
        parts = [self._target(source["$ref"], where, nullable, refs)] if "$ref" in source else []
        parts += [self.node(part, where, nullable=nullable, refs=refs) for part in _branches(source, "allOf", where)]
        # `oneOf` is read as `anyOf`: more lenient by purpose, since the model judges the value again.
        for key in ("anyOf", "oneOf"):
            branches = _branches(source, key, where)
            some = [branch for branch in branches if branch != {"type": "null"}]
            may_be_null = nullable or len(some) < len(branches)
            choices = [self.node(branch, where, nullable=may_be_null, refs=refs) for branch in some]
            if choices:
                parts.append(choices[0] if len(choices) == 1 else {"anyOf": choices})
        if parts:
            built["allOf"] = parts

    def _target(self, ref: object, where: str, nullable: bool, refs: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(ref, str) or not ref.startswith(_REF_PREFIX):
            raise BadSchema(f"{where}.$ref: only {_REF_PREFIX}<name> can be referred to")
        name = ref.removeprefix(_REF_PREFIX).replace("~1", "/").replace("~0", "~")
        if name in refs:
            raise BadSchema(f"{where}.$ref: {name} refers to itself")
        if name not in self._schemas:
            raise BadSchema(f"{where}.$ref: there is no schema {name}")
        return self.node(self._schemas[name], where, nullable=nullable, refs=(*refs, name))


def _types(source: dict[str, Any], where: str) -> tuple[list[str], bool]:
    """Return the declared types without "null", and whether "null" was among them."""
    declared = source.get("type")
    if declared is None:
        return [], False
    names = declared if isinstance(declared, list) else [declared]
    if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
        raise BadSchema(f"{where}.type: must be one or more of {', '.join(sorted(_TYPES))}")
    kept = list(dict.fromkeys(name for name in names if name != "null"))
    return (kept, len(kept) < len(names)) if kept else (["null"], False)


def _limits(source: dict[str, Any], built: dict[str, Any], where: str) -> None:
    """Copy ranges and lengths; `exclusiveMinimum: true` of OpenAPI 3.0 becomes the number it modifies."""
    for key in _COUNTS:
        count = source.get(key)
        if count is None:
            continue
        if not _is_number(count) or count != int(count) or not 0 <= count < _INT64:
            raise BadSchema(f"{where}.{key}: must be a whole number of at least 0")
        built[key] = int(count)
    for key, exclusive_key in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        limit, exclusive = source.get(key), source.get(exclusive_key)
        if limit is not None:
            built[exclusive_key if exclusive is True else key] = _number(limit, f"{where}.{key}")
        if exclusive is not None and not isinstance(exclusive, bool):
            built[exclusive_key] = _number(exclusive, f"{where}.{exclusive_key}")
    if (step := source.get("multipleOf")) is not None:
        if _number(step, f"{where}.multipleOf") <= 0:
            raise BadSchema(f"{where}.multipleOf: must be greater than 0")
        built["multipleOf"] = step
    if source.get("uniqueItems") is True:
        built["uniqueItems"] = True


def _branches(source: dict[str, Any], key: str, where: str) -> list[Any]:
    branches = source.get(key)
    if branches is None:
        return []
    if not isinstance(branches, list):
        raise BadSchema(f"{where}.{key}: must be a list of schemas")
    return branches


def _number(value: object, where: str) -> int | float:
    if not _is_number(value):
        raise BadSchema(f"{where}: must be a number")
    assert isinstance(value, int | float)
    return value


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < _INT64


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | bool) or _is_number(value)
