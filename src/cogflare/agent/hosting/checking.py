"""Checking an input against a model's schema, in the words of Cog's server.

It knows the keywords that `annotations` writes, and no others. Keys that the schema does not name pass, as in Cog.
"""

import operator
import re
from collections.abc import Callable
from typing import Any

from .frames import encode

Schema = dict[str, Any]
Problem = tuple[tuple[str, ...], str]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": (int, float), "number": (int, float), "boolean": bool, "array": list, "object": dict,
}  # fmt: skip
_NUMBER = (int, float)
_LIMITS: dict[str, tuple[Any, Callable[[Any, Any], bool], str]] = {
    "minimum": (_NUMBER, operator.lt, "is less than the minimum of"),
    "maximum": (_NUMBER, operator.gt, "is greater than the maximum of"),
    "exclusiveMinimum": (_NUMBER, operator.le, "is less than or equal to the minimum of"),
    "exclusiveMaximum": (_NUMBER, operator.ge, "is greater than or equal to the maximum of"),
    "minLength": (str, lambda value, limit: len(value) < limit, "is shorter than"),
    "maxLength": (str, lambda value, limit: len(value) > limit, "is longer than"),
    "minItems": (list, lambda value, limit: len(value) < limit, "has less than"),
    "maxItems": (list, lambda value, limit: len(value) > limit, "has more than"),
}
_UNITS = {str: "character", list: "item"}
_SHOWN = 200


def problems(document: Schema, value: object) -> list[dict[str, Any]]:
    """Return what is wrong with an input, as the ``detail`` of an answer; an empty list means valid."""
    found = []
    for path, message in check({"$ref": "Input"}, value, document["components"]["schemas"]):
        kind = "value_error.missing" if message == _MISSING else "value_error"
        found.append({"loc": ["body", "input", "/".join(path) or "__root__"], "msg": message, "type": kind})
    return found


_MISSING = "Field required"


def check(schema: Schema, value: object, components: dict[str, Schema]) -> list[Problem]:
    """Return what is wrong with a value, and where."""
    schema, is_nullable = _resolved(schema, components)
    if value is None and is_nullable:
        return []
    if variants := schema.get("anyOf"):
        if all(check(variant, value, components) for variant in variants):
            return [((), f"{_shown(value)} is not valid under any of the schemas listed in the 'anyOf' keyword")]
        return []
    if wrong := _wrong_type(schema, value) or _wrong_choice(schema, value):
        return [((), wrong)]
    return [((), message) for message in _limits(schema, value)] + _members(schema, value, components)


def _resolved(schema: Schema, components: dict[str, Schema]) -> tuple[Schema, bool]:
    """Return the schema that a reference leads to, and whether null is allowed beside it."""
    is_nullable = bool(schema.get("nullable"))
    parts = schema.get("allOf")
    reference = (parts[0] if parts else schema).get("$ref")
    if reference is None:
        return schema, is_nullable
    target = components[reference.rsplit("/", 1)[-1]]
    return target, is_nullable or bool(target.get("nullable"))


def _wrong_type(schema: Schema, value: object) -> str | None:
    wanted = schema.get("type")
    if wanted is None:
        return None
    is_right = isinstance(value, _TYPES[wanted]) and (wanted == "boolean") == isinstance(value, bool)
    if wanted == "integer" and isinstance(value, float):
        is_right = value.is_integer()
    return None if is_right else f'{_shown(value)} is not of type "{wanted}"'


def _wrong_choice(schema: Schema, value: object) -> str | None:
    choices = schema.get("enum")
    if choices is None or any(
        value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices
    ):
        return None
    *others, last = (_shown(choice) for choice in choices)
    return f"{_shown(value)} is not one of {', '.join(others) + ' or ' if others else ''}{last}"


def _limits(schema: Schema, value: Any) -> list[str]:
    found = []
    if isinstance(value, str) and (pattern := schema.get("pattern")) is not None and not re.search(pattern, value):
        found.append(f'{_shown(value)} does not match "{pattern}"')
    for keyword, (kind, is_broken, words) in _LIMITS.items():
        limit = schema.get(keyword)
        if limit is not None and isinstance(value, kind) and not isinstance(value, bool) and is_broken(value, limit):
            unit = f" {_UNITS[kind]}{'' if limit == 1 else 's'}" if kind in _UNITS else ""
            found.append(f"{_shown(value)} {words} {limit}{unit}")
    return found


def _members(schema: Schema, value: object, components: dict[str, Schema]) -> list[Problem]:
    found: list[Problem] = []
    if isinstance(value, list) and (items := schema.get("items")):
        for index, item in enumerate(value):
            found += _below(str(index), check(items, item, components))
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        found += [((name,), _MISSING) for name in schema.get("required", ()) if name not in value]
        for name, member in value.items():
            inner = known.get(name, other)
            if isinstance(inner, dict):
                found += _below(name, check(inner, member, components))
    return found


def _below(name: str, found: list[Problem]) -> list[Problem]:
    return [((name, *path), message) for path, message in found]


def _shown(value: object) -> str:
    text = encode(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
