"""Output files: what in an output is a file, and the reference of the sink that comes to stand for it.

Two kinds are known: receipts of our receiver (uploaded by the Cog server) and data URLs, which count as files only
where the model's schema says ``format: uri``. Anything else is left as the model said it.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from cogflare.agent.runners.base import OutputRefused, UploadSink
from cogflare.agent.runners.inbox import Inbox

Schema = dict[str, Any]

_SUFFIXES: Final = {
    "application/octet-stream": ".bin", "application/x-ndjson": ".jsonl", "application/yaml": ".yaml",
    "audio/aac": ".aac", "audio/flac": ".flac", "audio/midi": ".mid", "audio/mp4": ".m4a", "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg", "audio/opus": ".opus", "audio/wav": ".wav", "audio/x-flac": ".flac", "audio/x-wav": ".wav",
    "image/avif": ".avif", "image/heic": ".heic", "image/jpeg": ".jpg", "image/jxl": ".jxl", "image/webp": ".webp",
    "model/gltf-binary": ".glb", "model/gltf+json": ".gltf", "text/markdown": ".md", "text/plain": ".txt",
    "video/mp4": ".mp4", "video/quicktime": ".mov", "video/webm": ".webm", "video/x-matroska": ".mkv",
}  # fmt: skip
"""How files of types end that models make and not every system knows."""


class OutputShape:
    """What the schema says of a model's output."""

    def __init__(self, document: Schema | None) -> None:
        self.document = document
        self._components: Schema = (document or {}).get("components", {}).get("schemas", {})
        self.schema = self.resolve(self._components.get("Output", {}))
        self.is_iterator = self.schema.get("x-cog-array-type") == "iterator"
        self.is_streamed = bool(
            (document or {}).get("paths", {}).get("/predictions", {}).get("post", {}).get("x-cog-streaming")
        )

    @property
    def item(self) -> Schema:
        """The schema of one item of an array."""
        return self.resolve(self.schema.get("items", {}))

    @property
    def items_are_files(self) -> bool:
        """Whether the output is a list or iterator of files."""
        return self.schema.get("type") == "array" and _is_file(self.item)

    @property
    def has_files(self) -> bool:
        """Whether there is a file anywhere in the output."""
        return b'"format":"uri"' in msgspec.json.encode(self.schema) or self.items_are_files

    def resolve(self, schema: object) -> Schema:
        """The schema with a ``$ref``, alone or in ``allOf``, followed."""
        for _ in range(8):
            if not isinstance(schema, dict):
                return {}
            if "$ref" in schema:
                schema = self._components.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
            elif len(schema.get("allOf", ())) == 1:
                schema = schema["allOf"][0]
            else:
                return schema
        return {}


class OutputFiles:
    """Puts references in place of the files of one run's output, storing each file once."""

    def __init__(self, shape: OutputShape, inbox: Inbox, sink: UploadSink) -> None:
        self._shape, self._inbox, self._sink = shape, inbox, sink
        self._items: list[Any] = []

    async def item(self, index: int, value: Any) -> Any:
        """Item ``index`` of an iterator with its files stored. Items come in order; known ones are not stored again."""
        if index == len(self._items):
            self._items.append(await self._place(value, self._shape.item, f"output-{index}"))
        return self._items[index]

    async def whole(self, value: Any) -> Any:
        """A whole output with its files stored."""
        if self._shape.is_iterator and isinstance(value, list):
            return [await self.item(index, item) for index, item in enumerate(value)]
        return await self._place(value, self._shape.schema, "output")

    async def _place(self, value: Any, schema: Schema, name: str) -> Any:
        schema = self._variant(self._shape.resolve(schema), value)
        if isinstance(value, list):
            items = schema.get("items", {})
            return [await self._place(item, items, f"{name}-{index}") for index, item in enumerate(value)]
        if isinstance(value, dict):
            known, other = schema.get("properties", {}), schema.get("additionalProperties")
            return {key: await self._place(item, known.get(key, other), key) for key, item in value.items()}
        if self._inbox.holds(value):
            return await self._inbox.stored(value)
        if not isinstance(value, str) or not _is_file(schema):
            return value
        if value.startswith("/"):
            raise OutputRefused("the model's file stays with its Cog server, which was started without --upload-url")
        return await self._store(value, name) if value.startswith("data:") else value

    def _variant(self, schema: Schema, value: Any) -> Schema:
        """Of a union the variant that can hold the value."""
        variants = [self._shape.resolve(variant) for variant in schema.get("anyOf") or schema.get("oneOf") or ()]
        wanted = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
        return next((variant for variant in variants if variant.get("type") == wanted), schema)

    async def _store(self, url: str, name: str) -> str:
        try:
            content_type, content = decode_data_url(url)
        except ValueError:
            return url
        filename = name + (_SUFFIXES.get(content_type) or mimetypes.guess_extension(content_type) or "")
        return await self._sink.put(self._inbox.prediction_id, filename, content_type, _once(content), len(content))


def _is_file(schema: Schema) -> bool:
    return schema.get("type") == "string" and schema.get("format") == "uri"


def decode_data_url(url: str) -> tuple[str, bytes]:
    """Return content type and content of a data URL; raises `ValueError` when it is none."""
    head, comma, content = url.removeprefix("data:").partition(",")
    if not comma:
        raise ValueError("a data URL without a comma")
    content_type, *parameters = head.split(";")
    if content_type and "/" not in content_type:  # Cog servers before coglet name a type that they do not know "None"
        content_type = "application/octet-stream"
    if "base64" in parameters:
        try:
            return content_type or "text/plain", base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ValueError(f"a data URL with bad base64: {error}") from error
    return content_type or "text/plain", urllib.parse.unquote_to_bytes(content)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
