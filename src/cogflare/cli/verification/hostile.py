"""Requests that are wrong on purpose: each is to be refused with a problem document, whatever else goes on."""

import random
from typing import Any

import msgspec

_DEPTH = 300
_CREATE = "/v1/predictions"
_INSIDE = "http://169.254.169.254/latest/meta-data/"


class Hostile(msgspec.Struct, frozen=True):
    """One request that has to be refused. Where it could be taken for a create, its input has the tag."""

    kind: str
    method: str
    path: str
    content: bytes | None = None
    headers: dict[str, str] = {}


def hostile(dice: random.Random, model: str, tag: str) -> Hostile:
    """Return a request that is wrong in one of many ways; it asks for predictions of this model."""
    by_name = f"/v1/models/{model}/predictions"
    sound = {"tag": tag}
    deep = b'{"input": {"tag": "%b", "output": %b}}' % (tag.encode(), b"[" * _DEPTH + b"]" * _DEPTH)
    return dice.choice(
        (
            Hostile("a body that is no JSON", "POST", by_name, b'{"input": {"tag": "%b"' % tag.encode()),
            Hostile("a body that is not UTF-8", "POST", by_name, b'{"input": {"tag": "%b\xff"}}' % tag.encode()),
            Hostile("a body nested too deep", "POST", by_name, deep),
            Hostile("a body that is a list", "POST", by_name, b"[]"),
            Hostile("no body", "POST", by_name, b""),
            Hostile("no input", "POST", by_name, b"{}"),
            Hostile("an input without the tag", "POST", by_name, _json({"input": {}})),
            Hostile("an input of a wrong type", "POST", by_name, _json({"input": {**sound, "seconds": "long"}})),
            Hostile("an input out of range", "POST", by_name, _json({"input": {**sound, "items": -1}})),
            Hostile("an unknown field", "POST", by_name, _json({"input": sound, "inputs": sound})),
            Hostile("a webhook that is no URL", "POST", by_name, _json({"input": sound, "webhook": "gopher:x"})),
            Hostile("a webhook inside", "POST", by_name, _json({"input": sound, "webhook": _INSIDE})),
            Hostile(
                "an event that is none", "POST", by_name, _json({"input": sound, "webhook_events_filter": ["end"]})
            ),
            Hostile("an upload that is no form", "POST", "/v1/files", b"{}"),
            Hostile("an unknown file", "GET", f"/v1/files/{dice.randbytes(20).hex()}"),
            Hostile("an unknown stream", "GET", f"/v1/streams/{dice.randbytes(22).hex()}"),
            Hostile("an unknown message", "GET", "/v1/webhooks/deliveries/msg_x"),
            Hostile("an unknown version", "POST", _CREATE, _json({"version": "f" * 64, "input": sound})),
            Hostile("a version that is none", "POST", _CREATE, _json({"version": "latest", "input": sound})),
            Hostile("an unknown model", "POST", "/v1/models/no/such/predictions", _json({"input": sound})),
            Hostile("an unknown prediction", "GET", f"{_CREATE}/{dice.randbytes(13).hex()}"),
            Hostile("an id with strange characters", "GET", f"{_CREATE}/%00%ff'%22;--"),
            Hostile("a cancel of nothing", "POST", f"{_CREATE}/{dice.randbytes(13).hex()}/cancel"),
            Hostile("an unknown cursor", "GET", f"{_CREATE}?cursor=%ff{dice.randrange(1000)}"),
            Hostile("an unknown status", "GET", f"{_CREATE}?status=lost"),
            Hostile("a date that is none", "GET", f"{_CREATE}?created_after=yesterday"),
            Hostile("a method that is not there", "DELETE", _CREATE),
            Hostile("a path that is not there", "GET", "/v1/predictions/of/nobody"),
            Hostile("an unknown token", "GET", _CREATE, headers={"authorization": "Bearer cft_" + "0" * 40}),
            Hostile("a token that is none", "GET", _CREATE, headers={"authorization": "Basic eDp5"}),
        )
    )


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)
