"""Validating the `input` of a prediction against the schema of a model version, in the words clients know.

Problems carry the error names and sentences of the Go library gojsonschema, which Replicate answers with. Unknown
keys pass, defaults are not filled in, and nothing is changed: this module only says what is wrong.

The JSON Schema library stands behind `Compile`, so another one can take its place where no native wheel exists.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final, Protocol

import jsonschema_rs
import msgspec

from cogflare.domain.schemas import BadSchema, input_schema

__all__ = ["BadSchema", "Checker", "Compile", "FieldProblem", "InputValidator", "Violation", "compile_input"]

MAX_PROBLEMS: Final = 50
_WIDE_SCHEMA: Final = 50
_CHECKS: Final = 50_000_000
_TOLD_CHECKS: Final = 20_000
"""Parts of the schema times members of the value: what a check may cost (about a second), and what telling every
error may cost. Only a schema of more than `_WIDE_SCHEMA` parts could reach the first with a value that fits a request.
"""
_PATTERN_BYTES: Final = 1 << 14
_PATTERN_TEXT_CHARS: Final = 10_000
"""A match costs the compiled size of the pattern times the length of the text; both come from strangers."""


class FieldProblem(msgspec.Struct, frozen=True):
    """One thing wrong with a request: gojsonschema's error name, the dotted field ("" is the body), the sentence."""

    type: str
    field: str
    description: str


class Violation(msgspec.Struct, frozen=True):
    """One broken rule as the library tells it: where (path below the input), which JSON Schema keyword, its limit."""

    path: tuple[str | int, ...]
    keyword: str
    limit: Any


class Checker(Protocol):
    """A compiled schema."""

    def is_valid(self, value: object, /) -> bool:
        """Say whether `value` obeys the schema; the hot path. Raise ValueError where it cannot be checked at all."""

    def violations(self, value: object, /) -> Iterator[Violation]:
        """Tell every broken rule, in the schema's order."""


Compile = Callable[[dict[str, Any]], Checker]


class InputValidator:
    """Checks inputs against one version's schema; immutable, shared by all requests."""

    def __init__(self, checker: Checker | None) -> None:
        self._checker = checker

    def problems(self, value: bytes | msgspec.Raw | dict[str, Any]) -> list[FieldProblem]:
        """Return what is wrong with `value` (JSON text or its decoded object); an empty list means valid."""
        decoded: object = value
        if isinstance(value, bytes | msgspec.Raw):
            try:
                decoded = msgspec.json.decode(value)
            except (ValueError, RecursionError):
                return [FieldProblem("invalid_json", "input", "Not a JSON text")]
        if not isinstance(decoded, dict):
            return [_wrong_type("input", ["object"], decoded)]
        if self._checker is None:
            return []
        try:
            if self._checker.is_valid(decoded):
                return []
            found = [_problem(violation, decoded) for violation in self._checker.violations(decoded)]
        except (ValueError, RecursionError):
            return [FieldProblem("unchecked", "input", "Too large or too deeply nested to be checked")]
        return list(dict.fromkeys(found))


def compile_input(openapi_schema: object, compile_schema: Compile | None = None) -> InputValidator:
    """Compile the `Input` of a Cog OpenAPI document; raise `BadSchema`. Without one any object is a valid input."""
    schema = input_schema(openapi_schema)
    if schema is None:
        return InputValidator(None)
    return InputValidator((compile_schema or _RustChecker)(schema))


def is_file_reference(text: str) -> bool:
    """Say whether a `format: uri` value is one a worker may fetch: http(s) with a host, or a data URL."""
    head = text[:8].lower()
    if head.startswith("data:"):
        return "," in text
    for scheme in ("http://", "https://"):
        if head.startswith(scheme):
            return text[len(scheme) : len(scheme) + 1] not in ("", "/", "?", "#", " ") and text.isprintable()
    return False


class _RustChecker:
    """jsonschema-rs behind `Checker`: linear-time patterns, no network, our own idea of a URI."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._parts = _prepare(schema)
        try:
            self._validator = _validator(schema)
        except (ValueError, TypeError, OverflowError, jsonschema_rs.ReferencingError) as error:
            raise BadSchema(f"Input: {str(error).partition(chr(10))[0]}") from error

    def is_valid(self, value: object, /) -> bool:
        if self._parts > _WIDE_SCHEMA and _has_more_members(value, _CHECKS // self._parts):
            raise ValueError("too large")
        return self._validator.is_valid(value)

    def violations(self, value: object, /) -> Iterator[Violation]:
        for error in self._errors(value):
            limit = next(iter(error.kind.as_dict().values()), None)
            yield Violation(tuple(error.instance_path), error.kind.name, limit)

    def _errors(self, value: object) -> Iterable[jsonschema_rs.ValidationError]:
        """Tell all errors of a value of common size, but only the first of a large one.

        The library gathers every error before it hands out the first: seconds for a list of a million wrong items.
        """
        if not _has_more_members(value, _TOLD_CHECKS // self._parts):
            return islice(self._validator.iter_errors(value), MAX_PROBLEMS)
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return [error]
        return []


def _has_more_members(value: object, limit: int) -> bool:
    """Say whether a decoded JSON value has more than `limit` members, at all levels together."""
    pending, seen = [value], 0
    while pending:
        inner = pending.pop()
        if isinstance(inner, dict | list):
            seen += len(inner)
            if seen > limit:
                return True
            pending += inner.values() if isinstance(inner, dict) else inner
    return False


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft7Validator(
        schema,
        formats={"uri": is_file_reference},
        validate_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES),
        offline=True,
    )


def _prepare(schema: dict[str, Any]) -> int:
    """Count the parts of a schema; drop, in place, the patterns that the linear-time engine does not speak.

    Cog writes Python patterns, which may look around. The model still enforces its own, so leaving one out costs an
    early answer only; the same goes for texts too long to be matched here.
    """
    parts = 0
    pending: list[Any] = [schema]
    while pending:
        node = pending.pop()
        parts += 1 + len(node.get("enum", ()))
        if pattern := node.pop("pattern", None):
            with suppress(ValueError):
                _validator({"pattern": pattern})
                node |= {"if": {"maxLength": _PATTERN_TEXT_CHARS}, "then": {"pattern": pattern}}
        pending += node.get("properties", {}).values()
        pending += [node[key] for key in ("items", "additionalProperties") if node.get(key)]
        pending += [*node.get("allOf", ()), *node.get("anyOf", ())]
    return parts


_SENTENCES: Final[dict[str, tuple[str, str]]] = {
    "minimum": ("number_gte", "Must be greater than or equal to {}"),
    "maximum": ("number_lte", "Must be less than or equal to {}"),
    "exclusiveMinimum": ("number_gt", "Must be greater than {}"),
    "exclusiveMaximum": ("number_lt", "Must be less than {}"),
    "multipleOf": ("multiple_of", "Must be a multiple of {}"),
    "minLength": ("string_gte", "String length must be greater than or equal to {}"),
    "maxLength": ("string_lte", "String length must be less than or equal to {}"),
    "minItems": ("array_min_items", "Array must have at least {} items"),
    "maxItems": ("array_max_items", "Array must have at most {} items"),
    "minProperties": ("array_min_properties", "Must have at least {} properties"),
    "maxProperties": ("array_max_properties", "Must have at most {} properties"),
    "pattern": ("pattern", "Does not match pattern '{}'"),
    "format": ("format", "Does not match format '{}': pass an http(s) URL or a data: URL"),
    "required": ("required", "{} is required"),
    "additionalProperties": ("additional_property_not_allowed", "Additional property {} is not allowed"),
    "uniqueItems": ("unique", "array items must be unique"),
    "anyOf": ("number_any_of", "Must validate at least one schema (anyOf)"),
}
"""gojsonschema's name and sentence for each JSON Schema keyword; what is missing here is answered as `invalid`."""


def _problem(violation: Violation, value: object) -> FieldProblem:
    """Put one violation in gojsonschema's words."""
    below = ".".join(map(str, violation.path))
    field = f"input.{below}" if below else "input"
    keyword, limit = violation.keyword, violation.limit
    if keyword == "type":
        return _wrong_type(field, limit, _at(value, violation.path))
    if keyword == "enum":
        options = ", ".join(msgspec.json.encode(option).decode() for option in limit if option is not None)
        return FieldProblem("enum", field, f"{below or 'input'} must be one of the following: {options}")
    name, sentence = _SENTENCES.get(keyword, ("invalid", "Invalid value ({})"))
    shown = ", ".join(map(str, limit)) if isinstance(limit, list) else _shown(limit)
    return FieldProblem(name, field, sentence.format(shown))


def _wrong_type(field: str, expected: list[str], given: object) -> FieldProblem:
    types = [name for name in expected if name != "null"] or expected
    named = types[0] if len(types) == 1 else f"[{','.join(types)}]"
    return FieldProblem("invalid_type", field, f"Invalid type. Expected: {named}, given: {type_name(given)}")


def type_name(value: object) -> str:
    """Name the JSON type of a decoded value as gojsonschema does (5.0 is an integer)."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case list() | tuple():
            return "array"
    return "object"


def _at(value: Any, path: tuple[str | int, ...]) -> object:
    for step in path:
        value = value[step]
    return value


def _shown(limit: object) -> str:
    """Print a limit as Go does: whole numbers without a fraction."""
    return str(int(limit)) if isinstance(limit, float) and limit.is_integer() else str(limit)
