"""What a request says: bodies, headers and parameters of the Replicate API, read into plain values.

Pure: bytes and text in, frozen values out; everything a client can get wrong raises `Problem`. The JSON text of `input`
passes through as it came; it is decoded once beside that, because checking it needs the values and because text that
does not decode (invalid UTF-8, half a surrogate pair, endless nesting) must never be stored. Repeated keys keep their
last value, as in every JSON parser behind this one.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw

from cogflare.api.problems import BODY, Problem, bad_request, invalid_input, malformed_json, version_not_permitted
from cogflare.api.wishes import parse_wish
from cogflare.domain.ids import is_client_id
from cogflare.domain.inputs import FieldProblem, type_name
from cogflare.domain.webhooks import Event
from cogflare.net.addresses import PUBLIC, Reach, inside, literal

MAX_DEPTH: Final = 128
"""Levels of nesting that a request may have; every parser behind this one takes at least as many."""
MAX_WEBHOOK_CHARS: Final = 2048
DEFAULT_HOLD_S: Final = 58.0
"""How long a plain `Prefer: wait` holds: under the 60 s after which clients give up and send the request again."""
MAX_TIME_US: Final = 2**53 - 1
_MAX_HOST: Final = 253
_ZERO: Final = datetime(1970, 1, 1, tzinfo=UTC)

_EVENTS: Final[tuple[str, ...]] = get_args(Event)


# --- request bodies ---------------------------------------------------------------------------------------------------


class PredictionBody(msgspec.Struct, frozen=True):
    """A parsed create request: `input` is the client's JSON text, `values` the same, decoded; `route` is JSON text.

    `dialect` is the client's, None for Replicate's.
    """

    input: bytes
    values: dict[str, Any]
    version: str | None = None
    webhook: str | None = None
    webhook_events_filter: tuple[Event, ...] | None = None
    route: str | None = None
    dialect: str | None = None


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields a create body may have, for the fast path; nulls count as absent except where a value is needed."""

    input: Raw
    version: str | None = None
    webhook: str | None = None
    webhook_events_filter: tuple[Event, ...] | None = None
    stream: bool | None = None
    webhook_completed: str | None = None
    route: str | list[Any] | None = None


_envelope: Final = msgspec.json.Decoder(_Envelope)
_anything: Final = msgspec.json.Decoder()


def parse_prediction(body: bytes, *, versioned: bool, reach: Reach = PUBLIC) -> PredictionBody:
    """Parse the body of a create request; `versioned` says that `version` belongs in it (POST /predictions).

    `reach` is where webhooks may go, as far as an address tells; names are judged when they are connected to. Raise
    `Problem` 400 for text that is not JSON, 422 with gojsonschema's words for JSON of the wrong shape.
    """
    try:
        envelope = _envelope.decode(body)
        values = _anything.decode(envelope.input)
    except (ValueError, RecursionError):
        raise _refusal(body, versioned, reach) from None
    if not isinstance(values, dict) or (envelope.version is None) == versioned:
        raise _refusal(body, versioned, reach)
    webhook, last_webhook = envelope.webhook, envelope.webhook_completed
    if webhook or last_webhook:
        given = {"webhook": webhook, "webhook_completed": last_webhook}
        if problems := [found for name, url in given.items() for found in webhook_problems(name, url, reach)]:
            raise invalid_input(problems)
    text = bytes(envelope.input)
    _refuse_depth(text, values)
    events = envelope.webhook_events_filter
    if not webhook and last_webhook:
        # The field of 2022 clients: a webhook for the end only.
        webhook, events = last_webhook, ("completed",)
    return PredictionBody(text, values, envelope.version, webhook or None, events, parse_wish(envelope.route))


def decode_json(body: bytes, what: str = BODY) -> Any:
    """Decode any JSON request body, or a field of it; raise `Problem` 400 that says what is wrong and where."""
    try:
        value = _anything.decode(body)
    except RecursionError:
        raise _too_deep(what) from None
    except UnicodeDecodeError as error:
        raise malformed_json(f"it is not UTF-8 ({error.reason})", what) from None
    except ValueError as error:
        reason = str(error)
        if not body:
            reason = "it is empty"
        elif reason == "Input data was truncated":
            reason = r"it ends too early, or a \u escape in it is half of a surrogate pair"
        raise malformed_json(reason, what) from None
    _refuse_depth(body, value, what)
    return value


def _refuse_depth(text: bytes, value: object, what: str = BODY) -> None:
    """Refuse nesting over `MAX_DEPTH`; a text with few brackets, which is nearly every one, is not walked."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _members(outer)]
    if level:
        raise _too_deep(what)


def _members(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep(what: str) -> Problem:
    return malformed_json(f"it is nested more than {MAX_DEPTH} levels deep", what)


def _refusal(body: bytes, versioned: bool, reach: Reach) -> Problem:
    """Find out, at leisure, why the fast path did not take a body; raise `Problem` 400 where it is not JSON."""
    problems = _envelope_problems(decode_json(body), versioned, reach)
    # Only the last of two equal keys is left to look at, while the fast path met them both.
    return invalid_input(problems) if problems else malformed_json("a key is repeated")


def _envelope_problems(body: object, versioned: bool, reach: Reach) -> list[FieldProblem]:
    """Say all that is wrong with a decoded create body, as gojsonschema would."""
    if not isinstance(body, dict):
        return [expected("", "object", body)]
    fields = _FIELDS if versioned else {name: kind for name, kind in _FIELDS.items() if name != "version"}
    problems = [
        FieldProblem("required", "", f"{name} is required")
        for name in (("version", "input") if versioned else ("input",))
        if name not in body
    ]
    for name, value in body.items():
        if name not in fields:
            description = f"Additional property {name} is not allowed"
            problems.append(FieldProblem("additional_property_not_allowed", "", description))
        elif type_name(value) not in fields[name] and (value is not None or name in ("version", "input")):
            problems.append(expected(name, " or ".join(fields[name]), value))
        elif name in ("webhook", "webhook_completed"):
            problems += webhook_problems(name, value, reach)
        elif name == "webhook_events_filter" and value is not None:
            problems += _filter_problems(value)
    return problems


_FIELDS: Final = {
    "version": ("string",),
    "input": ("object",),
    "webhook": ("string",),
    "webhook_events_filter": ("array",),
    "stream": ("boolean",),
    "webhook_completed": ("string",),
    "route": ("string", "array"),
}


def expected(field: str, wanted: str, given: object) -> FieldProblem:
    """Say that a value is of the wrong type."""
    return FieldProblem("invalid_type", field, f"Invalid type. Expected: {wanted}, given: {type_name(given)}")


def webhook_problems(field: str, url: str | None, reach: Reach) -> list[FieldProblem]:
    """Say why nothing can be sent to a URL, as far as an address tells; one that is absent or empty has no fault."""
    if not url:
        return []
    if len(url) > MAX_WEBHOOK_CHARS:
        description = f"String length must be less than or equal to {MAX_WEBHOOK_CHARS}"
        return [FieldProblem("string_lte", field, description)]
    problem = None if is_http_url(url) else "Does not match format 'uri': pass an http(s) URL"
    if problem is None:
        problem = _target_problem(url, reach)
    return [] if problem is None else [FieldProblem("format", field, problem)]


def _target_problem(url: str, reach: Reach) -> str | None:
    """Say why nothing can be sent to an http(s) URL, as far as it can be seen without looking its host up."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if "@" in parts.netloc:
        return "Does not match format 'uri': a user name in it is not supported, put a secret into the query"
    if "%" in host:
        return "Does not match format 'uri': the host has a % in it"
    if not _can_be_host(host, is_bracketed="[" in parts.netloc):
        return "Does not match format 'uri': the host is no host name"
    address = literal(host)
    return None if address is None or reach.includes(address) else inside(host)


def _can_be_host(host: str, is_bracketed: bool) -> bool:
    """Say whether a name could be looked up at all, or is an IP address."""
    try:
        if is_bracketed:
            return bool(ipaddress.IPv6Address(host))
        return len(host.encode("idna")) <= _MAX_HOST
    except (ValueError, UnicodeError):
        return False


def address_problem(field: str, url: str, reach: Reach) -> FieldProblem | None:
    """Say why a URL cannot be the base of a provider's, as far as it can be seen without looking its host up."""
    if problems := webhook_problems(field, url, reach):
        return problems[0]
    parts = urlsplit(url)
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return FieldProblem("format", field, "Does not match format 'uri': pass a URL without a query or fragment")
    return None


def _filter_problems(events: Sequence[object]) -> list[FieldProblem]:
    options = ", ".join(f'"{event}"' for event in _EVENTS)
    name = "webhook_events_filter"
    return [
        FieldProblem("enum", f"{name}.{index}", f"{name}.{index} must be one of the following: {options}")
        if isinstance(event, str)
        else expected(f"{name}.{index}", "string", event)
        for index, event in enumerate(events)
        if event not in _EVENTS
    ]


def is_http_url(text: str) -> bool:
    """Say whether `text` is an absolute http(s) URL with a host, without blanks, control characters or a bad port."""
    if not text.isprintable() or " " in text or "\\" in text:
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


_WAIT: Final = re.compile(
    r'(?:^|[,;])\s*(wait(?:\s*=\s*"?(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"?)?)\s*(?=$|[,;])', re.ASCII | re.IGNORECASE
)
_DURATION: Final = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,9})s?)?", re.ASCII | re.IGNORECASE)
_MIN_CANCEL_AFTER_S: Final = 5
_MAX_CANCEL_AFTER_S: Final = 365 * 86_400
_COUNT: Final = re.compile(r"[0-9]{1,4}", re.ASCII)
_KEY: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)
_REFERENCE: Final = re.compile(
    r"(?:(?P<owner>[a-zA-Z0-9][a-zA-Z0-9._-]{0,99})/(?P<name>[a-zA-Z0-9][a-zA-Z0-9._-]{0,99})(?::(?=.)|$))?"
    r"(?P<id>[0-9a-f]{64})?",
    re.ASCII,
)
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+ -])(\d\d):?(\d\d))", re.ASCII
)


class Reference(msgspec.Struct, frozen=True):
    """What a client names: a version `id`, a model `owner`/`name`, or both."""

    id: str | None
    owner: str | None
    name: str | None


def parse_prefer(header: str | None) -> float | None:
    """Return how many seconds `Prefer` asks to hold the request: 1 to 60, `DEFAULT_HOLD_S` for plain `wait`, or None.

    Lenient: other preferences and unreadable ones are passed over, as RFC 7240 asks.
    """
    found = _WAIT.search(header) if header else None
    if found is None:
        return None
    return DEFAULT_HOLD_S if found[2] is None else min(60.0, max(1.0, float(found[2])))


def preference_applied(header: str | None) -> str | None:
    """Return the value for `Preference-Applied`: the part of `Prefer` that `parse_prefer` obeyed, as it was sent."""
    found = _WAIT.search(header) if header else None
    return found[1] if found else None


def parse_cancel_after(header: str | None) -> int | None:
    """Return the microseconds of a `Cancel-After` duration (`90`, `30s`, `1h30m45s`), None if absent.

    Raise `Problem` 400 for what is no duration, or not one from 5 seconds to a year.
    """
    if header is None:
        return None
    text = header.strip()
    found = _DURATION.fullmatch(text) if text else None
    if found is None:
        raise bad_request("Cancel-After must be a duration such as 30s, 5m or 1h30m45s", title="Invalid header")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total_s = hours * 3600 + minutes * 60 + seconds
    if total_s < _MIN_CANCEL_AFTER_S:
        raise bad_request(f"Cancel-After must be at least {_MIN_CANCEL_AFTER_S} seconds", title="Invalid header")
    if total_s > _MAX_CANCEL_AFTER_S:
        raise bad_request("Cancel-After must be at most a year (8760h)", title="Invalid header")
    return total_s * 1_000_000


def parse_idempotency_key(header: str | None) -> str | None:
    """Return the `Idempotency-Key`, None if absent; raise `Problem` 400 unless it is 1 to 255 characters of ASCII."""
    if header is None:
        return None
    if _KEY.fullmatch(header) is None:
        raise bad_request("Idempotency-Key must be 1 to 255 printable characters of ASCII", title="Invalid header")
    return header


def parse_retry_count(header: str | None) -> int | None:
    """Return what a client counts in `X-Stainless-Retry-Count`, None where there is no such number."""
    return int(header) if header is not None and _COUNT.fullmatch(header) else None


def parse_client_id(text: str) -> str:
    """Return the id that a client gives to a prediction; raise `Problem` 400 for what cannot be one."""
    if not is_client_id(text):
        raise bad_request("The id of a prediction is 1 to 200 of the characters A-Z a-z 0-9 . _ : -, and not . or ..")
    return text


def parse_reference(version: str) -> Reference:
    """Read `<64 hex>`, `owner/name:<64 hex>` or `owner/name`; anything else raises `Problem` 422."""
    found = _REFERENCE.fullmatch(version)
    if found is None or not version:
        raise version_not_permitted()
    return Reference(found["id"], found["owner"], found["name"])


def parse_time(text: str, field: str = "time") -> int:
    """Return the microseconds since 1970 of an RFC 3339 date-time, cut to the range of exact integers; raise 400.

    A blank in place of the `+` of an offset is what a query string makes of it, and is read as such.
    """
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        day, minute, second, fraction, sign, hours, minutes = found.groups()
        start = datetime.fromisoformat(f"{day}T{minute}:00+00:00") - _ZERO
        if int(second) > 60 or int(hours or 0) > 23 or int(minutes or 0) > 59:
            raise ValueError(text)
    except ValueError:
        raise bad_request(f"{field} must be an RFC 3339 date-time such as 2026-01-02T03:04:05Z") from None
    offset_s = (int(hours or 0) * 60 + int(minutes or 0)) * (-60 if sign == "-" else 60)
    total_s = start.days * 86_400 + start.seconds + int(second) - offset_s
    total_us = total_s * 1_000_000 + int((fraction or "").ljust(6, "0")[:6])
    return max(-MAX_TIME_US, min(MAX_TIME_US, total_us))
