"""The HTTP dialect of 2022: how a bot of the first Cogflare asks for a prediction, and how it is shown one.

Pure: bytes in, frozen values out, and the other way round. Who made a prediction decides how it is shown ever after;
Replicate's clients never send what is recognized here.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cogflare.api.problems import bad_request, invalid_input
from cogflare.api.requests import (
    PredictionBody,
    decode_json,
    expected,
    parse_reference,
    webhook_problems,
)
from cogflare.api.wire import Links, absolute_files, format_time
from cogflare.domain.inputs import FieldProblem
from cogflare.domain.phases import Status
from cogflare.domain.webhooks import Event
from cogflare.engine.receipts import PROVIDER
from cogflare.engine.views import PredictionView
from cogflare.net.addresses import PUBLIC, Reach
from cogflare.store.inquiries import Ran

OF_2022: Final = "2022"
HEADER: Final = "x-cogflare-token"
"""The header that may carry the token in place of `Authorization`."""
GIVE_UP_US: Final = 30 * 60 * 1_000_000
_CALLBACK: Final = "callbackUrl"
_EVENTS: Final[tuple[Event, ...]] = ("start", "output", "logs", "completed")
_OF_REPLICATE: Final = ("webhook", "webhook_events_filter", "webhook_completed", "stream", "route")
_TEXTS: Final = ("model", "version", _CALLBACK)
_MIXED: Final = "{} is not known beside callbackUrl: use the one or the other"
_GIVEN_UP: Final = "It did not end in time and was given up."

# Bots know two words. What another Cogflare runs is asked for there as at Replicate.
_RUNNERS: Final = {"replicate": "replicate", "cogflare": "replicate", "runpod": "runpod"}
_OWN_WORKERS: Final = "runpod"
"""What the workers of an account were called, wherever they ran."""


# --- requests ---------------------------------------------------------------------------------------------------------


def is_spoken(headers: Mapping[str, str], body: bytes) -> bool:
    """Say whether a create speaks like this: by its callback, its header, or a model where Replicate wants a version.

    One that needs what only Replicate's dialect has, such as `webhook`, speaks that. Raise `Problem` 400 for no JSON.
    """
    value = decode_json(body)
    has_header = HEADER in headers
    if not isinstance(value, dict):
        return has_header
    if value.get(_CALLBACK) is not None:
        return True
    if any(value.get(name) is not None for name in _OF_REPLICATE):
        return False
    return has_header or _CALLBACK in value or value.get("model") is not None


def parse(body: bytes, reach: Reach = PUBLIC) -> tuple[PredictionBody, str | None, str | None]:
    """Read a create: (body, model, version); the version counts only where no model is named.

    Workers of 2022 had no versions: what asks for a model runs on whichever is there. Fields that are not known are
    passed over, but not what asks for something in Replicate's dialect. Raise `Problem` 400 where neither is named, 422
    for values of the wrong kind.
    """
    value = decode_json(body)
    if not isinstance(value, dict):
        raise invalid_input([expected("", "object", value)])
    given = {name: value[name] for name in _TEXTS if value.get(name) is not None}
    problems = [expected(name, "string", one) for name, one in given.items() if not isinstance(one, str)]
    problems += [FieldProblem("not_allowed", name, _MIXED.format(name)) for name in _OF_REPLICATE if value.get(name)]
    values = value.get("input")
    if "input" not in value:
        problems.append(FieldProblem("required", "", "input is required"))
    elif not isinstance(values, dict):
        problems.append(expected("input", "object", values))
    if problems:
        raise invalid_input(problems)
    model, version, callback = (given.get(name) or None for name in _TEXTS)
    if model is None and version is None:
        raise bad_request("Model and/or version must be specified")
    if problems := webhook_problems(_CALLBACK, callback, reach):
        raise invalid_input(problems)
    text = bytes(_input.decode(body).input)
    order = PredictionBody(text, values or {}, version, callback, _EVENTS if callback else None, dialect=OF_2022)
    if model is not None:
        return order, _named(model), None
    reference = parse_reference(version or "")
    return order, f"{reference.owner}/{reference.name}" if reference.owner else None, reference.id


class _Input(msgspec.Struct):
    input: Raw


_input: Final = msgspec.json.Decoder(_Input)


def _named(model: str) -> str:
    """Return the name of a model; a version behind it is passed over, as one beside it is."""
    found = parse_reference(model) if "/" in model else None
    if found is None or found.owner is None:
        raise invalid_input([FieldProblem("format", "model", "Does not match format 'owner/name'")])
    return f"{found.owner}/{found.name}"


# --- answers ----------------------------------------------------------------------------------------------------------


class _Document(msgspec.Struct, omit_defaults=True):
    id: str
    urls: dict[str, str]
    source: str
    created_at: str
    version: str
    model: str
    status: str
    input: Raw
    runner: str | UnsetType = UNSET
    cogflare: bool | UnsetType = UNSET
    replicateId: str | UnsetType = UNSET  # noqa: N815 - its name on the wire
    output: Raw | UnsetType | None = UNSET
    logs: str | UnsetType = UNSET
    error: str | UnsetType | None = UNSET
    metrics: Raw | UnsetType | None = UNSET
    completed_at: str | UnsetType | None = UNSET


_encoder: Final = msgspec.json.Encoder()


def status_of(view: PredictionView) -> str:
    """Return the status in the words of 2022: `creating` until somebody has it, and two l in `cancelled`."""
    if view.status == Status.STARTING:
        return "starting" if view.attempt else "creating"
    return "cancelled" if view.status in (Status.CANCELED, Status.ABORTED) else view.status


def render(view: PredictionView, links: Links, ran: Ran | None) -> bytes:
    """Write a prediction; `ran` says who has its last attempt. Logs are text, whoever runs it."""
    get = links.get(view.public_id)
    text = b"{}" if view.data_removed else absolute_files(bytes(view.input), links.base_url)
    document = _Document(
        view.public_id,
        {"get": get, "cancel": f"{get}/cancel"},
        "cogflare",
        format_time(view.created_at),
        view.version,
        view.model,
        status_of(view),
        Raw(text),
    )
    if ran is not None:
        _add_runner(document, ran)
    if document.status != "creating":
        _add_result(document, view, links)
    return _encoder.encode(document)


def _add_runner(document: _Document, ran: Ran) -> None:
    if not ran.holder.startswith(PROVIDER):
        document.runner, document.cogflare = _OWN_WORKERS, True
        return
    runner = _RUNNERS.get(ran.kind or "", "replicate")
    document.runner = runner
    if runner == "replicate" and ran.remote_id is not None:
        document.replicateId = ran.remote_id


def _add_result(document: _Document, view: PredictionView, links: Links) -> None:
    shown = None if view.output is None or view.data_removed else absolute_files(view.output, links.base_url)
    document.output = None if shown is None else Raw(shown)
    document.logs = "" if view.data_removed else view.logs
    document.error = _error(view)
    document.metrics = None if view.metrics is None else Raw(view.metrics.encode())
    if view.completed_at is not None:
        document.completed_at = format_time(view.completed_at)


def _error(view: PredictionView) -> str | None:
    if view.status == Status.FAILED:
        return view.error
    is_late = view.deadline is not None and view.completed_at is not None and view.completed_at >= view.deadline
    return _GIVEN_UP if is_late and view.status in (Status.CANCELED, Status.ABORTED) else None
