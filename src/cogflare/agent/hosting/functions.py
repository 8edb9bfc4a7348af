"""A Python function as a model: found by its name, its type hints made into the schema of input and output."""

import enum
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable
from typing import Any

from .annotations import Kind, Kinds, Unsupported, items_of, read_field, title_of
from .checking import Schema
from .document import document
from .files import Files, InputFailed
from .frames import encode
from .model import Failed, Model, SetupError, is_async, is_generator

_EMPTY = inspect.Parameter.empty
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def load(target: str) -> Model:
    """Return the model ``module:name``, from the current folder; raises `SetupError` and what the module raises."""
    sys.path.insert(0, os.getcwd())
    return describe(_find(target))


def describe(function: Callable[..., Any]) -> Model:
    """Return the function as a model; raises `SetupError`."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        signature = inspect.signature(function)
        hints = _hints(function)
        kinds = Kinds()
        fields = {
            key: _field(parameter, hints.get(key, _EMPTY), kinds) for key, parameter in signature.parameters.items()
        }
        output, is_iterator = _output(hints.get("return", Any), is_generator(function), kinds)
    except (Unsupported, NameError, TypeError, ValueError) as error:
        raise SetupError(f"{name} cannot be made into a model: {error}") from error
    about = inspect.getdoc(function) if inspect.isroutine(function) else None
    schema = _input_schema(fields, about)
    return Model(
        document=document(schema, output, kinds.components, about or ""),
        is_async=is_async(function),
        is_iterator=is_iterator,
        bind=_Binding(function, signature, fields),
    )


class _Binding:
    """Makes calls of the function out of inputs."""

    def __init__(
        self, function: Callable[..., Any], signature: inspect.Signature, fields: dict[str, tuple[Kind, Any]]
    ) -> None:
        self._function, self._signature, self._fields = function, signature, fields

    def __call__(self, run_id: str, given: dict[str, Any], files: Files) -> Callable[[], Any]:
        """Return the call, its arguments made and its files fetched; raises `Failed`."""
        arguments = {}
        for name, (kind, default) in self._fields.items():
            if name in given:
                arguments[name] = self._load(name, kind, given[name], files)
            elif default is not _EMPTY:
                arguments[name] = default
        bound = inspect.BoundArguments(self._signature, arguments)
        return lambda: self._function(*bound.args, **bound.kwargs)

    def _load(self, name: str, kind: Kind, value: Any, files: Files) -> Any:
        try:
            return kind.load(value, files)
        except InputFailed as error:
            raise Failed(f"{name}: {error}") from error


def _find(target: str) -> Callable[..., Any]:
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise SetupError(f"{target!r} names no function: it is written module:name")
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise SetupError(f"there is no {name} in {module_name}")
        if inspect.isclass(found) and inspect.isfunction(inspect.getattr_static(found, part)):
            raise SetupError(f"{target} is a method of objects: name that of an object, {module_name}:object.{part}")
        found = getattr(found, part)
    if inspect.isclass(found) or not callable(found):
        raise SetupError(f"{target} is {'a class' if inspect.isclass(found) else 'no function'}: name a function")
    return found  # type: ignore[no-any-return]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The function's type hints, of an object those of its call."""
    routine = inspect.unwrap(function)
    while hasattr(routine, "func"):  # a partial
        routine = routine.func
    if not inspect.isroutine(routine):
        routine = type(routine).__call__
    return typing.get_type_hints(routine, include_extras=True)


def _field(parameter: inspect.Parameter, hint: Any, kinds: Kinds) -> tuple[Kind, Any]:
    """The kind of a parameter, and the value that stands for one that is not given."""
    name, default = parameter.name, parameter.default
    if parameter.kind in _VARIADIC:
        raise Unsupported(f"*{name}: every input has a name of its own")
    kind = kinds.of(hint, name)
    if (said := read_field(default)) is not None:
        kind = kinds.noted(kind, said, name)
        default = _field_default(default, None if kind.schema.get("nullable") else _EMPTY)
    if default is None and not kind.schema.get("nullable"):
        kind = kind.or_null()
    schema = dict(kind.schema)
    shown = default.value if isinstance(default, enum.Enum) else default
    if default is not _EMPTY and default is not None and schema.get("format") != "uri" and _is_json(shown):
        schema["default"] = shown
    return Kind(schema, kind.load), default


def _field_default(field: Any, otherwise: Any) -> Any:
    """The default inside ``Input(…)`` or ``Field(…)``, whose own defaults say that there is none."""
    default = getattr(field, "default", None)
    is_none = default is None or default is ... or type(default).__name__ == "PydanticUndefinedType"
    return otherwise if is_none else default


def _is_json(value: Any) -> bool:
    try:
        encode(value)
    except (TypeError, ValueError):
        return False
    return True


def _input_schema(fields: dict[str, tuple[Kind, Any]], about: str | None) -> Schema:
    properties = {}
    for order, (name, (kind, _)) in enumerate(fields.items()):
        titled = {} if "allOf" in kind.schema else {"title": title_of(name)}
        properties[name] = {"x-order": order, **titled, **kind.schema}
    schema: Schema = {"properties": properties, "type": "object", "title": "Input"}
    if about:
        schema["description"] = about
    if required := [name for name, (_, default) in fields.items() if default is _EMPTY]:
        schema["required"] = required
    return schema


def _output(hint: Any, yields: bool, kinds: Kinds) -> tuple[Schema, bool]:
    """The schema of the output, and whether it comes item by item."""
    items = items_of(hint)
    if items is None and not yields:
        return kinds.of(hint, "the output").schema, False
    if items is None and hint is not Any:
        raise Unsupported(f"it yields, and is hinted to return {hint}; Iterator[…] says what it yields")
    schema: Schema = {"type": "array", "items": kinds.of(Any if items is None else items, "the output").schema}
    schema["x-cog-array-type"] = "iterator"
    if schema["items"].get("type") == "string" and "format" not in schema["items"]:
        schema["x-cog-array-display"] = "concatenate"
    return schema, True
