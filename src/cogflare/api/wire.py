"""What an answer says: predictions, models, versions, accounts, pages and URLs as Replicate's JSON.

Pure: frozen values in, bytes out, no store and no clock. `input` and `output` are JSON text that was checked when it
came in and passes through unread. What comes the other way is read by `requests`.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cogflare.api.problems import invalid_cursor
from cogflare.domain.ids import streams_files


def format_time(us: int) -> str:
    """Write microseconds since 1970 as `YYYY-MM-DDTHH:MM:SS.ffffffZ`."""
    seconds, fraction = divmod(us, 1_000_000)
    return f"{_second(seconds)}.{fraction:06d}Z"


@lru_cache(maxsize=8192)
def _second(seconds: int) -> str:
    """Write whole seconds; the times of one moment's answers share few of them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_CURSOR: Final = re.compile(rb"[np]:[0-9A-Za-z._/:~-]{1,256}")


class Cursor(msgspec.Struct, frozen=True):
    """A place in a list: the id at the edge of a page, and which way the next one lies."""

    last_id: str
    backwards: bool = False


def format_cursor(cursor: Cursor) -> str:
    """Write a cursor as opaque, URL-safe text."""
    direction = "p" if cursor.backwards else "n"
    return base64.urlsafe_b64encode(f"{direction}:{cursor.last_id}".encode()).decode().rstrip("=")


def parse_cursor(text: str | None) -> Cursor | None:
    """Read a cursor of `format_cursor`; None or "" is the first page; raise `Problem` 404 for any other text."""
    if not text:
        return None
    try:
        bare = text.rstrip("=")
        raw = base64.b64decode(bare + "=" * (-len(bare) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise invalid_cursor() from None
    if not _CURSOR.fullmatch(raw):
        raise invalid_cursor()
    return Cursor(raw[2:].decode(), raw[:1] == b"p")


def page(results: Sequence[bytes], next: str | None, previous: str | None) -> bytes:
    """Join rendered objects into one page; `next` and `previous` are absolute URLs."""
    head = msgspec.json.encode({"previous": previous, "next": next})
    return b'%b,"results":[%b]}' % (head[:-1], b",".join(results))


class Links:
    """Absolute URLs under one base URL (no trailing slash), see `origin.public_base`."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def get(self, prediction_id: str) -> str:
        """Return where a prediction is read."""
        return f"{self.base_url}/v1/predictions/{prediction_id}"

    def cancel(self, prediction_id: str) -> str:
        """Return where a prediction is canceled."""
        return f"{self.base_url}/v1/predictions/{prediction_id}/cancel"

    def web(self, prediction_id: str) -> str:
        """Return a prediction's page for people."""
        return f"{self.base_url}/p/{prediction_id}"

    def stream(self, token: str) -> str:
        """Return where a prediction's events are streamed; the token is the permission.

        The JavaScript client makes files of what comes from a path that begins like this, and text of all other.
        """
        return f"{self.base_url}/v1/{'files' if streams_files(token) else 'streams'}/{token}"

    def model(self, owner: str, name: str) -> str:
        """Return a model's page for people."""
        return f"{self.base_url}/{owner}/{name}"

    def page(self, path: str, cursor: Cursor, query: Mapping[str, str] | None = None) -> str:
        """Return the URL of another page of the list at `path` ("/v1/predictions"), keeping its other parameters."""
        return f"{self.base_url}{path}?{urlencode({**(query or {}), 'cursor': format_cursor(cursor)})}"

    def prediction(self, prediction_id: str, stream_token: str | None = None) -> dict[str, str]:
        """Return the `urls` of a prediction; no member is ever null."""
        get = self.get(prediction_id)
        urls = {"cancel": f"{get}/cancel", "get": get, "web": self.web(prediction_id)}
        if stream_token is not None:
            urls["stream"] = self.stream(stream_token)
        return urls


_FILE_PREFIX: Final = b'"cogflare-file:/'


def absolute_files(raw: bytes, base_url: str) -> bytes:
    """Replace the `cogflare-file:/` that begins stored file references by the base URL, in one pass over the JSON."""
    if _FILE_PREFIX not in raw:
        return raw
    prefix = b'"%b/' % base_url.encode()
    if b"\\" + _FILE_PREFIX not in raw:
        return raw.replace(_FILE_PREFIX, prefix)
    # A quote behind a backslash stands inside a string: a model's text about file references, not one of them.
    return re.sub(rb"(?<!\\)" + re.escape(_FILE_PREFIX), lambda _: prefix, raw)


Status = Literal["starting", "processing", "succeeded", "failed", "canceled", "aborted"]
Form = Literal["create", "get", "webhook"]
"""Where a prediction is shown: a create answer leaves out what is not known yet, a webhook leaves out `source`."""


class WirePrediction(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction as clients see it; times are microseconds since 1970, `input` and `output` JSON text."""

    id: str
    model: str
    version: str
    input: Raw
    status: Status
    created_at: int
    urls: dict[str, str]
    output: Raw | None = None
    logs: str = ""
    error: str | None = None
    data_removed: bool = False
    started_at: int | None = None
    completed_at: int | None = None
    deadline: int | None = None
    metrics: dict[str, Any] | Raw | None = None
    source: str = "api"
    deployment: str | None = None
    webhook: str | None = None
    webhook_events_filter: Sequence[str] | None = None


class _PredictionDocument(msgspec.Struct, omit_defaults=True):
    id: str
    model: str
    version: str
    input: Raw
    logs: str
    output: Raw | None
    data_removed: bool
    error: str | None
    status: Status
    created_at: str
    urls: dict[str, str]
    source: str | UnsetType = UNSET
    started_at: str | UnsetType | None = UNSET
    completed_at: str | UnsetType | None = UNSET
    deadline: str | UnsetType = UNSET
    metrics: dict[str, Any] | Raw | UnsetType = UNSET
    deployment: str | UnsetType = UNSET
    webhook: str | UnsetType = UNSET
    webhook_events_filter: Sequence[str] | UnsetType = UNSET


_encoder: Final = msgspec.json.Encoder()
_REMOVED_INPUT: Final = Raw(b"{}")


def render_prediction(p: WirePrediction, form: Form = "get") -> bytes:
    """Write a prediction. `error` is null unless it failed; data past its retention is shown empty."""
    unknown = UNSET if form == "create" else None
    document = _PredictionDocument(
        p.id,
        p.model,
        p.version,
        _REMOVED_INPUT if p.data_removed else p.input,
        "" if p.data_removed else p.logs,
        None if p.data_removed else p.output,
        p.data_removed,
        p.error if p.status == "failed" else None,
        p.status,
        format_time(p.created_at),
        p.urls,
        p.source if form == "get" else UNSET,
        unknown if p.started_at is None else format_time(p.started_at),
        unknown if p.completed_at is None else format_time(p.completed_at),
        UNSET if p.deadline is None else format_time(p.deadline),
        UNSET if p.metrics is None else p.metrics,
        UNSET if p.deployment is None else p.deployment,
        UNSET if p.webhook is None else p.webhook,
        UNSET if p.webhook_events_filter is None else p.webhook_events_filter,
    )
    return _encoder.encode(document)


class WireVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A model version; `openapi_schema` is JSON text. Clients need every member non-null."""

    id: str
    created_at: int
    openapi_schema: Raw
    cog_version: str = "0.16.0"


class WireLimits(msgspec.Struct, frozen=True):
    """What a model's owner has set; null is the server's default. `rerun`: text that was shown may be made anew."""

    run_limit_s: float | None = None
    start_limit_s: float | None = None
    max_queued: int | None = None
    rerun: bool = False


class WireModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model; `default_example` is a prediction rendered in full, or None."""

    owner: str
    name: str
    url: str
    visibility: Literal["public", "private"]
    created_at: int
    run_count: int = 0
    is_official: bool = False
    description: str | None = None
    github_url: str | None = None
    paper_url: str | None = None
    license_url: str | None = None
    weights_url: str | None = None
    cover_image_url: str | None = None
    default_example: Raw | None = None
    latest_version: WireVersion | None = None
    limits: WireLimits = WireLimits()
    requirements: Raw | None = None


class WireAccount(msgspec.Struct, frozen=True, kw_only=True):
    """The account behind a token; `name` falls back to the username, because clients need it."""

    username: str
    type: Literal["user", "organization"] = "user"
    name: str | None = None
    avatar_url: str | None = None
    github_url: str | None = None


def render_version(version: WireVersion) -> bytes:
    """Write a model version."""
    return _encoder.encode(_version(version))


def render_model(model: WireModel) -> bytes:
    """Write a model; its latest version and default example are complete or null."""
    document = msgspec.structs.asdict(model)
    document["created_at"] = format_time(model.created_at)
    document["latest_version"] = None if model.latest_version is None else _version(model.latest_version)
    return _encoder.encode(document)


def render_account(account: WireAccount) -> bytes:
    """Write an account; an avatar that is not known is left out, since its member may not be null."""
    document = msgspec.structs.asdict(account)
    document["name"] = account.name or account.username
    if account.avatar_url is None:
        del document["avatar_url"]
    return _encoder.encode(document)


def _version(version: WireVersion) -> dict[str, Any]:
    return {**msgspec.structs.asdict(version), "created_at": format_time(version.created_at)}
