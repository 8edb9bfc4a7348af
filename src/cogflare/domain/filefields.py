"""The files in an input: where the model's schema says that a value is one (`format: uri`), and which URLs are ours."""

import re
from collections.abc import Iterable, Iterator
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
_LONGEST_OWN: Final = 4096  # characters; ours are much shorter, and the parser of URLs remembers what it has seen
# Two expressions that begin with plain text each are searched many times faster than one for both.
_MARKS: Final = (re.compile(rb"/f(?:iles)?/[0-9a-z]{40}"), re.compile(rb'"cogflare-file:/'))


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
    if isinstance(value, dict):
        for key in value:
            below = [found for schema in schemas if (found := _property(schema, key)) is not None]
            yield from _members(below, value, (key,), path)
    elif isinstance(value, list):
        # All items have the same schemas, and there may be very many.
        below = [found for schema in schemas if isinstance(found := schema.get("items"), dict)]
        yield from _members(below, value, range(len(value)), path)


def _members(schemas: list[dict[str, Any]], holder: Any, keys: Iterable[Any], path: str) -> Iterator[Place]:
    """Find the places in these members of `holder`, which the schemas describe."""
    if not schemas:
        return
    is_file = any(schema.get("format") == "uri" for schema in _unfolded(schemas))
    for key in keys:
        member = holder[key]
        if not isinstance(member, str):
            yield from _places(schemas, member, f"{path}.{key}")
        elif is_file:
            yield Place(holder, key, member, f"{path}.{key}")


def _unfolded(schemas: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for schema in schemas:
        yield schema
        yield from _unfolded([*schema.get("allOf", ()), *schema.get("anyOf", ())])


def _property(schema: dict[str, Any], key: str) -> dict[str, Any] | None:
    found = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return found if isinstance(found, dict) else None


class OwnFile(NamedTuple):
    """The file that a URL of this API names: an `upload` by its id, `signed`, or `open` to whoever has the URL."""

    kind: str
    id: str


def own_file(url: str) -> OwnFile | None:
    """Return what a URL of this API names, on whatever host; None for any other URL."""
    if len(url) > _LONGEST_OWN or not url[:8].lower().startswith(("http://", "https://")):
        return None
    if "/files/" not in url and "/f/" not in url:
        return None
    try:
        found = _OWN.search(urlsplit(url).path)
    except ValueError:
        return None
    return OwnFile(found.lastgroup or "", found[found.lastgroup or 0]) if found else None


def has_marks(text: bytes | msgspec.Raw) -> bool:
    """Say whether JSON text may name files that only this server can hand out."""
    return any(mark.search(text) is not None for mark in _MARKS)
