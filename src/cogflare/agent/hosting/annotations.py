"""Type hints as JSON Schema, in Cog's words, and how a value of JSON becomes one of the hint.

A hint that is none of these has no schema, and the model is not set up: `Unsupported` says which and why.
"""

import collections.abc
import dataclasses
import enum
import inspect
import pathlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Union

from .checking import Schema, check
from .files import Files

RESERVED = ("Input", "Output", "PredictionRequest", "PredictionResponse")
"""Components that every document has."""

Load = Callable[[Any, Files], Any]

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    Any: {},
    object: {},
    inspect.Parameter.empty: {},
    None: {},
    type(None): {},
}
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_LIMITS = {
    "description": "description", "ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum",
    "min_length": "minLength", "max_length": "maxLength", "pattern": "pattern", "regex": "pattern", "choices": "enum",
    "title": "title",
}  # fmt: skip
_OF_LISTS = {"minLength": "minItems", "maxLength": "maxItems"}


class Unsupported(Exception):
    """A hint that cannot be served; the message names it."""


class Kind(NamedTuple):
    """What a hint means: its schema, and how a value that obeys it is made into the function's."""

    schema: Schema
    load: Load

    def or_null(self) -> "Kind":
        """Return this kind with null beside it."""
        return Kind(
            {**self.schema, "nullable": True}, lambda value, files: None if value is None else self.load(value, files)
        )


class Kinds:
    """Makes kinds of hints. ``components`` are the enumerations that it had to name on the way."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}
        self._within: list[type] = []

    def of(self, hint: Any, name: str) -> Kind:
        """Return the kind of a hint; ``name`` is that of what is hinted."""
        hint = _unwrapped(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            return self._annotated((arguments[0], *hint.__metadata__), name)
        if origin is None and hint in _PLAIN:
            return Kind(dict(_PLAIN[hint]), _cast(hint))
        if origin in (Union, types.UnionType):
            return self._union(arguments, name)
        if origin is Literal:
            values = [value for value in arguments if value is not None]
            kind = self._choice(values, _component(name), name, lambda value, _: value)
            return kind if len(values) == len(arguments) else kind.or_null()
        if (origin or hint) in _LISTS:
            return self._list(hint, origin or hint, arguments, name)
        if (origin or hint) in _DICTS:
            return self._dict(arguments, name)
        if isinstance(hint, type):
            return self._class(hint, name)
        raise Unsupported(f"{name}: {_told(hint)} is not a type that an input or output can have")

    def _annotated(self, arguments: tuple[Any, ...], name: str) -> Kind:
        kind = self.of(arguments[0], name)
        for note in arguments[1:]:
            kind = self.noted(kind, note, name)
        return kind

    def noted(self, kind: Kind, note: Any, name: str) -> Kind:
        """Return the kind with what a note of `Annotated` says of it: a description, limits, choices."""
        said = (
            {"description": note} if isinstance(note, str) else dict(note) if isinstance(note, Mapping) else _read(note)
        )
        unknown = sorted(said.keys() - _LIMITS.keys())
        if unknown:
            raise Unsupported(f"{name}: nothing is known of {', '.join(unknown)}; there is {', '.join(_LIMITS)}")
        if (choices := said.pop("choices", None)) is not None:
            kind = self._chosen(kind, list(choices), name)
        schema = dict(kind.schema)
        for key, value in said.items():
            word = _LIMITS[key]
            if not _makes_sense(word, value):
                raise Unsupported(f"{name}: {key} cannot be {value!r}")
            schema[_OF_LISTS.get(word, word) if schema.get("type") == "array" else word] = value
        return Kind(schema, kind.load)

    def _chosen(self, kind: Kind, choices: list[Any], name: str) -> Kind:
        chosen = self._choice(choices, _component(name), name, kind.load)
        if kind.schema.get("type") == "array":  # what is chosen are its items
            return Kind({**kind.schema, "items": chosen.schema}, kind.load)
        return chosen.or_null() if kind.schema.get("nullable") else chosen

    def _union(self, arguments: tuple[Any, ...], name: str) -> Kind:
        hints = [hint for hint in arguments if hint is not type(None)]
        if len(hints) == 1:
            kind = self.of(hints[0], name)
        else:
            kinds = [self.of(hint, name) for hint in hints]
            kind = Kind({"anyOf": [kind.schema for kind in kinds]}, self._first_of(kinds))
        return kind if len(hints) == len(arguments) else kind.or_null()

    def _first_of(self, kinds: list[Kind]) -> Load:
        def load(value: Any, files: Files) -> Any:
            kind = next(kind for kind in kinds if not check(kind.schema, value, self.components))
            return kind.load(value, files)

        return load

    def _choice(self, values: list[Any], title: str, name: str, load: Load) -> Kind:
        """A choice is a component of its own, to which the field refers, as Cog has it."""
        if not values or not all(isinstance(value, str | int | float | bool) for value in values):
            raise Unsupported(f"{name}: a choice is between texts, numbers and truth values")
        schema: Schema = {"title": title, "description": "An enumeration.", "enum": values}
        for python, word in ((str, "string"), (bool, "boolean"), (int, "integer")):
            if all(type(value) is python for value in values):
                schema["type"] = word
        while title in RESERVED or self.components.get(title, schema) != schema:
            title += "_"
        self.components[title] = schema
        return Kind({"allOf": [{"$ref": f"#/components/schemas/{title}"}]}, load)

    def _list(self, hint: Any, origin: Any, arguments: tuple[Any, ...], name: str) -> Kind:
        if origin is tuple and arguments and (len(arguments) != 2 or arguments[1] is not ...):
            raise Unsupported(f"{name}: {_told(hint)} has items of several types; tuple[X, ...] has one")
        item = self.of(arguments[0] if arguments else Any, name)
        make = origin if origin in (tuple, set, frozenset) else list
        return Kind(
            {"type": "array", "items": item.schema},
            lambda values, files: make(item.load(value, files) for value in values),
        )

    def _dict(self, arguments: tuple[Any, ...], name: str) -> Kind:
        if arguments and _unwrapped(arguments[0]) is not str:
            raise Unsupported(f"{name}: the keys of a dictionary are texts, not {_told(arguments[0])}")
        member = self.of(arguments[1] if arguments else Any, name)
        schema: Schema = {"type": "object", "additionalProperties": member.schema or True}
        return Kind(schema, lambda values, files: {key: member.load(value, files) for key, value in values.items()})

    def _class(self, hint: type, name: str) -> Kind:
        if issubclass(hint, pathlib.PurePath):
            return Kind({"type": "string", "format": "uri"}, lambda url, files: hint(files.fetch(url)))
        if issubclass(hint, enum.Enum):
            return self._choice([member.value for member in hint], hint.__name__, name, lambda value, _: hint(value))
        if typing.is_typeddict(hint):
            hints = _hints(hint)
            return self._object(hint, name, hints, {key for key in hints if _is_key_required(hint, key, hints[key])})
        if dataclasses.is_dataclass(hint):
            hints = _hints(hint)
            fields = [field for field in dataclasses.fields(hint) if field.init]
            required = {field.name for field in fields if _is_required(field)}
            return self._object(hint, name, {field.name: hints[field.name] for field in fields}, required)
        raise Unsupported(f"{name}: {_told(hint)} is not a type that an input or output can have")

    def _object(self, hint: type, name: str, hints: dict[str, Any], required: collections.abc.Set[str]) -> Kind:
        if hint in self._within:
            raise Unsupported(f"{name}: {_told(hint)} has itself as a part")
        self._within.append(hint)
        members = {key: self.of(_without_required(value), f"{name}.{key}") for key, value in hints.items()}
        self._within.pop()
        properties = {key: {**kind.schema, "title": title_of(key)} for key, kind in members.items()}
        schema: Schema = {"type": "object", "properties": properties}
        if needed := [key for key in members if key in required]:
            schema["required"] = needed

        def load(values: dict[str, Any], files: Files) -> Any:
            return hint(**{key: kind.load(values[key], files) for key, kind in members.items() if key in values})

        return Kind(schema, load)


def items_of(hint: Any) -> Any:
    """Return the hint of an iterator's items; None where the hint is no iterator's."""
    hint = _unwrapped(hint)
    origin = typing.get_origin(hint) or hint
    streams = (collections.abc.Iterator, collections.abc.AsyncIterator)
    whole = (collections.abc.Iterable, collections.abc.AsyncIterable)
    if origin in whole or (isinstance(origin, type) and issubclass(origin, streams)):
        return (*typing.get_args(hint), Any)[0]
    return None


def read_field(default: Any) -> dict[str, Any] | None:
    """Return what a parameter's default says if it describes an input, such as Cog's ``Input(…)``; else None."""
    return _read(default) if type(default).__name__ == "FieldInfo" else None


def title_of(name: str) -> str:
    """Return a name as Cog's schemas title it."""
    return name.replace("_", " ").title()


def _read(note: Any) -> dict[str, Any]:
    """Read limits off an object, and off those that it lists as its metadata."""
    said = {
        key: value for key in _LIMITS if isinstance(value := getattr(note, key, None), str | int | float | list | tuple)
    }
    for part in getattr(note, "metadata", ()) or ():
        said.update(_read(part))
    return said


def _component(name: str) -> str:
    return name.removeprefix("the ")


def _makes_sense(word: str, value: Any) -> bool:
    if word == "pattern":
        try:
            re.compile(value)
        except (re.error, TypeError):
            return False
    return isinstance(value, str if word in ("pattern", "title", "description") else int | float)


def _cast(hint: Any) -> Load:
    if hint in (int, float):
        return lambda value, _: hint(value)
    return lambda value, _: value


def _unwrapped(hint: Any) -> Any:
    """Follow `NewType` and ``type X = …`` to what they stand for."""
    while True:
        inner = getattr(hint, "__supertype__", None)
        if inner is None and type(hint).__name__ == "TypeAliasType":
            inner = hint.__value__
        if inner is None:
            return hint
        hint = inner


def _hints(hint: type) -> dict[str, Any]:
    return typing.get_type_hints(hint, include_extras=True)


def _is_key_required(hint: Any, key: str, said: Any) -> bool:
    """Whether a typed dictionary has to have the key. Of hints that are texts the class itself does not know."""
    word = getattr(typing.get_origin(said), "_name", "")
    return word == "Required" or (word != "NotRequired" and key in hint.__required_keys__)


def _without_required(hint: Any) -> Any:
    """The hint inside ``Required[…]`` and ``NotRequired[…]``."""
    origin = typing.get_origin(hint)
    return typing.get_args(hint)[0] if getattr(origin, "_name", "") in ("Required", "NotRequired") else hint


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _told(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)
