"""From `-i key=value` to the input of a prediction, guided by the types that the model declares."""

import base64
import mimetypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from cogflare.domain.schemas import BadSchema, input_schema

MAX_FILE_BYTES: Final = 256_000
"""The largest file that travels inside the request, as a data URL."""
Upload = Callable[[Path], str]
_UNKNOWN: Final = frozenset({"unknown"})


def parse_inputs(pairs: Iterable[str], openapi_schema: Any, upload: Upload | None = None) -> dict[str, Any]:
    """Return the input that `key=value` pairs ask for; raise `click.UsageError` that says what the model takes.

    Types come from the schema; without one, what reads as JSON is JSON. `key=@path` is a file: a data URL, or its
    text where the model wants plain text; a larger one is given to `upload`, which returns its URL. `@@` begins a
    value that begins with `@`. A repeated key makes a list.
    """
    properties = input_properties(openapi_schema)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"-i {pair}: write it as key=value, for example -i prompt='a red fox'")
        if properties and key not in properties:
            raise click.UsageError(f"the model has no input {key!r}; it has: {', '.join(properties)}")
        node = properties.get(key)
        if node is not None and "array" in types_of(node):
            values[key] = [*values.get(key, []), *_items(key, text, node, upload)]
        elif key in values:
            raise click.UsageError(f"the input {key!r} was given twice, and it is no list")
        else:
            values[key] = _value(key, text, node, upload)
    return values


def input_properties(openapi_schema: Any) -> dict[str, dict[str, Any]]:
    """Return the declared inputs with their references put in place, in the model's order; {} where none are known."""
    try:
        schema = input_schema(openapi_schema) or {}
    except BadSchema:
        return {}
    original = _declared(openapi_schema)
    names: dict[str, dict[str, Any]] = schema.get("properties", {})

    def order(name: str) -> float:
        position = original.get(name, {}).get("x-order")
        return position if isinstance(position, int) else float("inf")

    return {name: names[name] for name in sorted(names, key=order)}


def input_rows(openapi_schema: Any) -> list[tuple[str, str, Any, Any]]:
    """Return name, type, default and description of every input, for a table."""
    declared = _declared(openapi_schema)
    required = set(_component(openapi_schema).get("required") or ())
    rows: list[tuple[str, str, Any, Any]] = []
    for name, node in input_properties(openapi_schema).items():
        source = declared.get(name, {})
        kind = _kind(node) + _range(node)
        default = "(required)" if name in required else source.get("default")
        rows.append((name, kind, default, source.get("description")))
    return rows


def types_of(node: dict[str, Any]) -> frozenset[str]:
    """Return the JSON types a schema allows, "null" left out; `{"unknown"}` when it does not say."""
    found = set(node.get("type") or ())
    for key in ("allOf", "anyOf"):
        for part in node.get(key) or ():
            found |= types_of(part) - _UNKNOWN
    return frozenset(found - {"null"}) or _UNKNOWN


def _items(key: str, text: str, node: dict[str, Any], upload: Upload | None) -> list[Any]:
    """Read one of several values, or a whole JSON list."""
    if text.startswith("["):
        try:
            items = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise click.UsageError(f"-i {key}: this is no JSON list: {error}") from error
        if isinstance(items, list):
            return items
    return [_value(key, text, node.get("items") or {}, upload)]


def _value(key: str, text: str, node: dict[str, Any] | None, upload: Upload | None) -> Any:
    types = _UNKNOWN if node is None else types_of(node)
    if text.startswith("@@"):
        text = text[1:]
    elif text.startswith("@"):
        return _file(key, Path(text[1:]), node, upload)
    if "string" in types:
        return text
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        if types == _UNKNOWN:
            return text
        raise click.UsageError(f"-i {key}={text}: the model wants {_spoken(types)} here") from error
    if types == {"integer"} and isinstance(value, float) and not value.is_integer():
        raise click.UsageError(f"-i {key}={text}: the model wants {_spoken(types)} here")
    return value


def _file(key: str, path: Path, node: dict[str, Any] | None, upload: Upload | None) -> str:
    """Read a file: as text where the model wants text, else as a data URL, or upload it."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES and upload is not None and node is not None and _is_file(node):
            return upload(path)
        if size > MAX_FILE_BYTES:
            raise click.UsageError(
                f"-i {key}: {path} has {size} bytes, and {MAX_FILE_BYTES} fit into a request; put it where the worker"
                f" can fetch it and pass its address: -i {key}=https://…"
            )
        content = path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"-i {key}: cannot read {path}: {error.strerror}") from error
    if node is not None and not _is_file(node):
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"-i {key}: the model wants text here, and {path} is none") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _is_file(node: dict[str, Any]) -> bool:
    parts = [part for key in ("allOf", "anyOf") for part in node.get(key) or ()]
    return node.get("format") == "uri" or any(_is_file(part) for part in parts)


def _kind(node: dict[str, Any]) -> str:
    if _is_file(node):
        return "file"
    if choices := _choices(node):
        return " | ".join(str(choice) for choice in choices)
    kinds = types_of(node)
    if kinds == {"array"}:
        return f"list of {_kind(node.get('items') or {})}"
    return "any" if kinds == _UNKNOWN else " or ".join(sorted(kinds))


def _choices(node: dict[str, Any]) -> list[Any]:
    if node.get("enum"):
        return list(node["enum"])
    return next((found for part in node.get("allOf") or () if (found := _choices(part))), [])


def _range(node: dict[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is None and high is None:
        return ""
    return f" {'' if low is None else f'{low:.15g}'}..{'' if high is None else f'{high:.15g}'}"


def _spoken(types: frozenset[str]) -> str:
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    return " or ".join(words.get(kind, f"JSON ({kind})") for kind in sorted(types))


def _component(openapi_schema: Any) -> dict[str, Any]:
    """Return the `Input` component as the model wrote it."""
    found = openapi_schema
    for key in ("components", "schemas", "Input"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _declared(openapi_schema: Any) -> dict[str, dict[str, Any]]:
    properties = _component(openapi_schema).get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: node for name, node in properties.items() if isinstance(node, dict)}
