"""`cogflare webhooks`: what became of each message, sending one once more, the secret, a receiver to try it with."""

import asyncio
import errno
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, get_args
from urllib.parse import urlsplit

import click
import msgspec

from cogflare.cli.client import Client, NotFound, quoted, with_client
from cogflare.cli.listening import Keys, Listener, Received
from cogflare.cli.optionvalues import Whole
from cogflare.cli.output import age, as_json, cell, duration, note, print_fields, print_json, print_table, time_of
from cogflare.domain.webhooks import Subject
from cogflare.settings import SettingsError, load
from cogflare.store.base import StoreError
from cogflare.store.open import open_database
from cogflare.store.secrets import forget_secrets

_SECRET: Final = "/v1/webhooks/default/secret"  # noqa: S105 - where it is asked for
_DELIVERIES: Final = "/v1/webhooks/deliveries"
_LOOPBACK: Final = re.compile(r"127\.|\[?::1\]?$|localhost$")
_BRIEF: Final = 60


@click.group()
def webhooks() -> None:
    """See what became of webhooks, send one once more, and try them on this machine."""


@webhooks.command("list")
@click.option("--state", type=click.Choice(["pending", "delivered", "failed"]), help="Only those in this state.")
@click.option("--event", type=click.Choice(get_args(Subject)), help="Only those of this event.")
@click.option("--prediction", metavar="ID", help="Only those about this prediction.")
@click.option("--limit", type=Whole(1), default=20, show_default=True, help="How many, newest first.")
@as_json
@with_client
def list_deliveries(
    client: Client, state: str | None, event: str | None, prediction: str | None, limit: int, as_json: bool
) -> None:
    """List the messages to webhooks, those about the newest predictions first."""
    found = _deliveries(client, limit, prediction, state=state, event=event)
    if as_json:
        for delivery in found:
            print_json(delivery)
        return
    rows = ((d["id"], d["event"], d["state"], d["tries"], age(d["created_at"]), _brief(_outcome(d))) for d in found)
    print_table(("id", "event", "state", "tries", "created", "last answer"), rows, "no messages")


@webhooks.command()
@click.argument("message_id", metavar="ID")
@as_json
@with_client
def show(client: Client, message_id: str, as_json: bool) -> None:
    """Show a message: the request, and what came of each try."""
    found = _message(client, "GET", message_id)
    if as_json:
        print_json(found)
        return
    request = found["request"] or {"headers": {}, "body": None}
    print_fields(
        [
            *((name, found[name]) for name in ("id", "event", "prediction", "url", "state")),
            ("created", time_of(found["created_at"])),
            ("next try", time_of(found["next_try_at"])),
            ("gives up", time_of(found["give_up_at"])),
            ("ended", time_of(found["ended_at"])),
            *request["headers"].items(),
            ("body", request["body"]),
        ]
    )
    rows = ((t["try"], time_of(t["at"]), duration(t["duration_s"]), _outcome(t), t["answer"]) for t in found["log"])
    print_table(("try", "at", "took", "outcome", "answer"), rows, "not tried yet")


@webhooks.command()
@click.argument("message_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@with_client
def replay(client: Client, message_ids: tuple[str, ...], as_json: bool) -> None:
    """Send messages once more, under their ids; one that waits for its next try is tried now."""
    for message_id in message_ids:
        delivery = _message(client, "POST", message_id)
        if as_json:
            print_json(delivery)
        else:
            note(f"{delivery['id']} is sent to {delivery['url']}; see `cogflare webhooks show {delivery['id']}`")


@webhooks.command()
@click.option("--rotate", is_flag=True, help="Make a new one; the old one signs along for a day.")
@as_json
@with_client
def secret(client: Client, rotate: bool, as_json: bool) -> None:
    """Print the secret that your account's webhooks are signed with."""
    found = client.post(f"{_SECRET}/rotate") if rotate else client.get(_SECRET)
    if as_json:
        print_json(found)
        return
    click.echo(found["key"])
    if rotate:
        note(f"until {time_of(found['previous_expires_at'])} messages are signed with the one before it too")


@webhooks.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=Whole(0, 65535), default=9000, show_default=True, help="0 for any free one.")
@click.option("--forward", metavar="URL", help="Send each message on to this address, and its answer back.")
@as_json
@with_client
def listen(client: Client, host: str, port: int, forward: str | None, as_json: bool) -> None:
    """Receive webhooks on this machine: check the signature of each, and show it.

    A message that is not signed with your account's secret is answered 401, and shown as such.
    """
    if forward is not None and (urlsplit(forward).scheme not in ("http", "https") or not urlsplit(forward).netloc):
        raise click.UsageError("--forward must be an address such as http://127.0.0.1:3000/hook")
    keys = Keys(lambda: str(client.get(_SECRET)["key"]))
    try:
        listener = Listener(host, port, keys, _tell_json if as_json else _tell, forward)
    except OSError as error:
        other = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise click.ClickException(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another {other}"
        ) from error
    with listener:
        _introduce(listener.url, client.server)
        listener.serve_forever()
        raise BrokenPipeError  # it ends by itself only when nobody reads what it prints


@webhooks.command("reset")
@click.option("--data", help="Data folder of the server (default: ./cogflare-data).")
@click.option("--database-url", help="Where its database is, if not in the data folder.")
@click.option("--config", type=click.Path(dir_okay=False), help="The TOML file with the server's settings.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset_secrets(data: str | None, database_url: str | None, config: str | None, yes: bool) -> None:
    """Forget the secrets of all accounts, because the server's secret_key is lost; stop the server first.

    Each account gets a new secret when it is next needed. Receivers refuse what they are sent until they know it, and
    download URLs of uploaded files end. Providers pause until they are given their keys again.
    """
    if not yes:
        click.confirm("Forget the secrets of all accounts?", abort=True)
    try:
        settings = load(config, {"data": data, "database_url": database_url})
        count = asyncio.run(_forget(settings.database()))
    except (SettingsError, StoreError, ValueError, OSError) as error:
        raise click.ClickException(f"nothing was changed: {error}") from error
    note(f"forgotten, {count} in all; the server starts with its own key now")


async def _forget(url: str) -> int:
    db = open_database(url)
    try:
        await db.migrate()
        return await forget_secrets(db)
    finally:
        await db.aclose()


def _deliveries(client: Client, limit: int, prediction: str | None, **filters: str | None) -> Iterator[dict[str, Any]]:
    try:
        yield from client.pages(_DELIVERIES, limit, prediction=prediction, **filters)
    except NotFound as error:
        what = f"the server has no prediction {prediction}: `cogflare predictions list` shows what it has"
        raise NotFound(what, 404) from error


def _message(client: Client, method: str, message_id: str) -> Any:
    path = f"{_DELIVERIES}/{quoted(message_id)}"
    try:
        return client.get(path) if method == "GET" else client.post(f"{path}/replay")
    except NotFound as error:
        what = f"the server has no message {message_id}: `cogflare webhooks list` shows what it has"
        raise NotFound(what, 404) from error


def _outcome(told: Mapping[str, Any]) -> str:
    """Say what came of a try: the status is in the error, if there is one."""
    return told["error"] or (f"answered {told['status']}" if told["status"] else "")


def _introduce(url: str, server: str) -> None:
    note(f'Listening on {url} (Ctrl-C ends it). Create predictions with "webhook": "{url}".')
    if _LOOPBACK.match(urlsplit(url).hostname or "") and _LOOPBACK.match(urlsplit(server).hostname or ""):
        note(
            "The server may reach this machine if it was started with COGFLARE_OUTGOING_NETWORKS=127.0.0.0/8 (the"
            " setting outgoing_networks)."
        )
    else:
        note("The server has to reach this address: give it a tunnel's, or listen with --host on one that it reaches.")


def _tell(received: Received) -> None:
    """Print a message for people: one line."""
    now = f"{datetime.now(UTC):%H:%M:%S}"
    if received.problem is not None:
        note(f"{now}  refused: {received.problem}")
        return
    said = _decoded(received.body)
    line = (now, said.get("status"), said.get("model"), said.get("id"), _brief(said.get("error") or said.get("output")))
    click.echo("  ".join(cell(part) for part in line))
    if received.forward_error is not None:
        note(f"{now}  not passed on: {received.forward_error}")
    elif received.answered >= 300:
        note(f"{now}  answered {received.answered}")


def _tell_json(received: Received) -> None:
    """Print a message for programs."""
    body = None if received.problem else _decoded(received.body)
    head = {"id": received.id, "verified": received.problem is None, "problem": received.problem}
    print_json({**head, "answered": received.answered, "body": body})


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _brief(value: Any) -> str:
    text = cell(value)
    return text if len(text) <= _BRIEF else text[: _BRIEF - 1] + "…"
