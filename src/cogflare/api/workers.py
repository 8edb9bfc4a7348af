"""How a worker looks on the wire: what it runs, on what, and what its models require and it has not."""

from typing import Any, Final

import msgspec

from cogflare.api.wire import format_time
from cogflare.store.catalog import TokenRow
from cogflare.store.fleet import WorkerRow

_encode: Final = msgspec.json.encode


def render(row: WorkerRow, account: str, state: str) -> bytes:
    """Write a worker as listed."""
    return _encode(_document(row, account, state))


def render_all(row: WorkerRow, account: str, state: str, token: TokenRow | None) -> bytes:
    """Write a worker with what its token allows."""
    return _encode(_document(row, account, state) | {"token": None if token is None else _token(token)})


def _document(row: WorkerRow, account: str, state: str) -> dict[str, Any]:
    offers: list[dict[str, Any]] = msgspec.json.decode(row.offers)
    return {
        "id": row.id,
        "name": row.name,
        "account": account,
        "state": state,
        "node": row.node,
        "models": _models(offers, msgspec.json.decode(row.unmet)),
        "slots": sum(offer["slots"] for offer in offers),
        "busy": row.busy,
        "health": "ok" if row.quarantine is None else "quarantined",
        "quarantine": _quarantine(row),
        "agent": msgspec.Raw(row.agent.encode()),
        "machine": _machine(row),
        "setup_since": _time(row.setup_since),
        "connected_at": format_time(row.connected_at) if row.link_epoch else None,
        "changed_at": format_time(row.changed_at),
    }


def _models(offers: list[dict[str, Any]], unmet: list[str]) -> list[dict[str, Any]]:
    # A worker that has not connected yet has been held against nothing.
    lacking = unmet + [""] * (len(offers) - len(unmet))
    return [
        {
            "model": f"{offer['owner']}/{offer['name']}",
            "version": offer["version"],
            "slots": offer["slots"],
            "unmet": text or None,
        }
        for offer, text in zip(offers, lacking, strict=False)
    ]


def _machine(row: WorkerRow) -> msgspec.Raw | None:
    return None if row.machine == "{}" else msgspec.Raw(row.machine.encode())


def _quarantine(row: WorkerRow) -> dict[str, object] | None:
    if row.quarantine is None:
        return None
    return {"reason": row.quarantine, "since": _time(row.quarantined_at)}


def _token(limits: TokenRow) -> dict[str, object]:
    return {
        "id": limits.id,
        "name": limits.name,
        "models": limits.models,
        "max_connections": limits.max_connections,
        "connections": limits.connections,
        "expires_at": _time(limits.expires_at),
        "revoked_at": _time(limits.revoked_at),
    }


def _time(us: int | None) -> str | None:
    return None if us is None else format_time(us)
