"""The files in an input: where the model's schema says that a value is one (`format: uri`), and which URLs are ours."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from cogflare.domain.schemas import BadSchema, input_schema

REFERENCE: Final = "cogflare-file:/"
"""What stored references to files begin with, in place of the base URL that answers show."""
_OWN: Final = re.compile(
    r"/(?:files/(?P<upload>[0-9a-z]{40})|files/(?P<signed>[0-9a-z]{40})/download(?:/[^/]*)?|f/(?P<open>[0-9a-z]{40})/[^/]+)\Z",
    re.ASCII,
)
_MARK: Final = re.compile(rb'/(?:files|f)/[0-9a-z]{40}|"cogflare-file:/')


@dataclass(slots=True)
class Place:
    """Where a file's URL stands in an input; `path` is how people call it."""

    holder: Any
    key: Any
    url: str
    path: str


def file_schema(openapi_schema: object) -> dict[str, Any] | None:
    """Return the schema of the input; None where no part of it is a file, or it makes no sense."""
    try:
        schema = input_schema(openapi_schema)
    except BadSchema:
        return None
    return schema if schema is not None and b'"format":"uri"' in msgspec.json.encode(schema) else None


def file_places(schema: dict[str, Any], value: object) -> Iterator[Place]:
    """Find the places in an input that the schema calls files."""
    return _places([schema], value, "input")


def _places(schemas: list[dict[str, Any]], value: object, path: str) -> Iterator[Place]:
    """Find the places below `value` that the schemas, which all describe it, call files."""
    schemas = list(_unfolded(schemas))
    pairs: Iterator[tuple[Any, Any]] | enumerate[Any]
    if isinstance(value, dict):
        pairs = iter(value.items())
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return
    for key, member in pairs:
        below = [found for schema in schemas if (found := _member(schema, key)) is not None]
        here = f"{path}.{key}"
        if isinstance(member, str):
            if any(schema.get("format") == "uri" for schema in _unfolded(below)):
                yield Place(value, key, member, here)
        elif below:
            yield from _places(below, member, here)


def _unfolded(schemas: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for schema in schemas:
        yield schema
        yield from _unfolded([*schema.get("allOf", ()), *schema.get("anyOf", ())])


def _member(schema: dict[str, Any], key: str | int) -> dict[str, Any] | None:
    if isinstance(key, int):
        found = schema.get("items")
    else:
        found = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return found if isinstance(found, dict) else None


class OwnFile(NamedTuple):
    """The file that a URL of this API names: an `upload` by its id, `signed`, or `open` to whoever has the URL."""

    kind: str
    id: str


def own_file(url: str) -> OwnFile | None:
    """Return what a URL of this API names, on whatever host; None for any other URL."""
    if not url[:8].lower().startswith(("http://", "https://")):
        return None
    try:
        found = _OWN.search(urlsplit(url).path)
    except ValueError:
        return None
    return OwnFile(found.lastgroup or "", found[found.lastgroup or 0]) if found else None


def has_marks(text: bytes | msgspec.Raw) -> bool:
    """Say whether JSON text may name files that only this server can hand out."""
    return _MARK.search(text) is not None
