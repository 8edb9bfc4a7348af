"""Ways to break what webhooks and readers of streams were told in a sound history."""

from typing import Any

import msgspec

from chaos.broken import Kind, changed, without
from chaos.histories import Shape, Tale
from cogflare.cli.verification.history import Asked, Event, StoredDelivery, Streamed, Told


def _ends_told(events: list[Event], tale: Tale, **fields: Any) -> list[Event]:
    """Return the events with these fields of all messages about the end of a prediction set."""
    return [
        msgspec.structs.replace(event, **fields)
        if isinstance(event, Told) and event.prediction == tale.id and event.status == tale.status
        else event
        for event in events
    ]


def _one_stream(events: list[Event], tale: Tale, **fields: Any) -> list[Event]:
    """Return the events with these fields of what the last reader of a prediction was shown set."""
    last = [event for event in events if isinstance(event, Streamed) and event.prediction == tale.id][-1]
    return [msgspec.structs.replace(event, **fields) if event is last else event for event in events]


def _asked_for(events: list[Event], tale: Tale, wanted: list[str]) -> list[Event]:
    """Return the events with another filter of a prediction's webhook."""
    return [
        msgspec.structs.replace(event, events=wanted) if isinstance(event, Asked) and event.tag == tale.tag else event
        for event in events
    ]


_STREAMED: tuple[Shape, ...] = ("streamed", "streamed_anew")

KINDS = (
    Kind("an end is told to nobody", 11, ("hooked",), lambda events, tale: without(events, tale, Told)),
    Kind("an end is taken by nobody", 11, ("hooked",), lambda events, tale: _ends_told(events, tale, code=500)),
    Kind(
        "an end is told, and its message stays pending",
        11,
        ("hooked",),
        lambda events, tale: changed(events, tale, StoredDelivery, state="pending"),
    ),
    Kind(
        "an end is given up",
        11,
        ("hooked",),
        lambda events, tale: changed(_ends_told(events, tale, code=500), tale, StoredDelivery, state="failed"),
    ),
    Kind(
        "an end is told under two ids",
        11,
        ("hooked",),
        lambda events, tale: [*events, tale.told(9.5, "msg_other", tale.status, 4)],
    ),
    Kind(
        "an end has the id of an earlier message",
        11,
        ("hooked",),
        lambda events, tale: changed(events, tale, Told, message="msg_all"),
    ),
    Kind(
        "another end is told than the stored one",
        11,
        ("hooked",),
        lambda events, tale: [*events, tale.told(9.5, f"msg_{tale.id}", "canceled", 4)],
    ),
    Kind(
        "an end is told without its last item",
        11,
        ("hooked",),
        lambda events, tale: [*events, tale.told(9.5, f"msg_{tale.id}", tale.status, 3)],
    ),
    Kind(
        "a message follows a taken end",
        11,
        ("hooked",),
        lambda events, tale: [*events, tale.told(9.5, f"msg_{tale.id}_3", "processing", 3)],
    ),
    Kind(
        "a message is not signed",
        11,
        ("hooked",),
        lambda events, tale: _ends_told(events, tale, is_signed=False),
    ),
    Kind(
        "a redirect is followed",
        11,
        ("hooked",),
        lambda events, tale: [*events, msgspec.structs.replace(tale.told(9.5, "msg_x", "processing"), is_moved=True)],
    ),
    Kind(
        "a message comes to another address",
        11,
        ("hooked",),
        lambda events, tale: changed(events, tale, Told, tag="tag-else-x"),
    ),
    Kind(
        "a webhook hears of a prediction that has none",
        11,
        ("plain", "canceled"),
        lambda events, tale: [*events, tale.told(9.5, f"msg_{tale.id}", tale.status, tale.shown)],
    ),
    Kind(
        "a webhook hears of what it has not asked for",
        11,
        ("hooked",),
        lambda events, tale: _asked_for(events, tale, ["completed"]),
    ),
    Kind(
        "a webhook hears of an end that it has not asked for",
        11,
        ("hooked",),
        lambda events, tale: _asked_for(events, tale, ["start", "output"]),
    ),
    Kind(
        "a stream lacks an item",
        12,
        _STREAMED,
        lambda events, tale: _one_stream(events, tale, items=[tale.output()[0], *tale.output()[2:]]),
    ),
    Kind(
        "a stream shows an item twice",
        12,
        _STREAMED,
        lambda events, tale: _one_stream(events, tale, items=[tale.output()[0], *tale.output()]),
    ),
    Kind(
        "a stream shows items in another order",
        12,
        _STREAMED,
        lambda events, tale: _one_stream(events, tale, items=tale.output()[::-1]),
    ),
    Kind(
        "a stream lacks the last item",
        12,
        _STREAMED,
        lambda events, tale: _one_stream(events, tale, items=tale.output(3)),
    ),
    Kind(
        "a stream lacks the last line of the log",
        12,
        _STREAMED,
        lambda events, tale: _one_stream(events, tale, logs=tale.logs(3)),
    ),
    Kind("a stream never ends", 12, _STREAMED, lambda events, tale: _one_stream(events, tale, done=None)),
    Kind(
        "a stream is refused",
        12,
        _STREAMED,
        lambda events, tale: _one_stream(events, tale, done=None, refusal="404 Not found"),
    ),
    Kind(
        "a stream ends as its prediction did not",
        12,
        _STREAMED,
        lambda events, tale: _one_stream(events, tale, done="canceled"),
    ),
    Kind(
        "a stream ends with an error, and nothing was lost",
        12,
        ("streamed",),
        lambda events, tale: _one_stream(events, tale, items=tale.output(2), logs=None, done="error", error="lost"),
    ),
    Kind(
        "a stream goes on with another attempt",
        12,
        ("streamed_anew",),
        lambda events, tale: _one_stream(events, tale, items=[*tale.output(2, 1), *tale.output()[2:]]),
    ),
    Kind(
        "a stream breaks off what succeeds",
        12,
        ("streamed_anew",),
        lambda events, tale: _one_stream(events, tale, items=tale.output(2), logs=None, done="error", error="lost"),
    ),
    Kind(
        "a stream starts over without a word",
        12,
        ("streamed_anew",),
        lambda events, tale: _one_stream(events, tale, items=tale.output(2, 1), logs=None, done="error"),
    ),
)
