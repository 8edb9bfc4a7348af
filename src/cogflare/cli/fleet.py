"""`cogflare models`, `cogflare workers` and `cogflare account`: what there is to run, on what, and as whom."""

import re
from typing import Any, Final

import click

from cogflare.cli.client import Client, with_client
from cogflare.cli.inputs import input_rows
from cogflare.cli.output import age, as_json, note, print_fields, print_json, print_table

MODEL: Final = re.compile(r"[^/:\s]+/[^/:\s]+")
_EVERYTHING: Final = 10_000


@click.group()
def models() -> None:
    """Look at the models that can be run."""


@models.command("list")
@as_json
@with_client
def list_models(client: Client, as_json: bool) -> None:
    """List models."""
    found = client.pages("/v1/models", _EVERYTHING)
    if as_json:
        for model in found:
            print_json(model)
        return
    rows = ((f"{m['owner']}/{m['name']}", m["run_count"], _version(m)[:12], m["description"]) for m in found)
    print_table(("model", "runs", "version", "description"), rows, "no models yet: `cogflare worker` connects one")


@models.command("show")
@click.argument("model", metavar="OWNER/NAME")
@as_json
@with_client
def show_model(client: Client, model: str, as_json: bool) -> None:
    """Show a model and the inputs it takes."""
    if not MODEL.fullmatch(model):
        raise click.UsageError(f"{model!r} is no model: write owner/name")
    found = client.get(f"/v1/models/{model}")
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("model", f"{found['owner']}/{found['name']}"),
            ("description", found["description"]),
            ("version", _version(found)),
            ("runs", found["run_count"]),
        ]
    )
    rows = input_rows((found["latest_version"] or {}).get("openapi_schema"))
    print_table(
        ("input", "type", "default", "description"),
        rows,
        "its inputs are not declared: `cog build` in its folder would do that",
    )


@click.group()
def workers() -> None:
    """Look at the workers and send them home."""


@workers.command("list")
@as_json
@with_client
def list_workers(client: Client, as_json: bool) -> None:
    """List workers and what they do."""
    found = client.pages("/v1/workers", _EVERYTHING)
    if as_json:
        for worker in found:
            print_json(worker)
        return
    rows = ((w["id"], w["name"], w["state"], _offers(w), f"{w['busy']}/{w['slots']}", _since(w)) for w in found)
    empty = "no workers: `cogflare worker` connects one"
    print_table(("id", "name", "state", "models", "busy", "connected"), rows, empty)


@workers.command()
@click.argument("worker_id", metavar="ID")
@with_client
def drain(client: Client, worker_id: str) -> None:
    """Let a worker finish what it runs and leave."""
    client.post(f"/v1/workers/{worker_id}/drain")
    note(f"{worker_id} takes nothing new; it leaves when its last prediction has ended")


@click.command()
@as_json
@with_client
def account(client: Client, as_json: bool) -> None:
    """Show whose token this is."""
    found = client.get("/v1/account")
    if as_json:
        print_json(found)
    else:
        print_fields([(name, found.get(name)) for name in ("username", "name", "type")] + [("server", client.server)])


def _version(model: dict[str, Any]) -> str:
    return str((model.get("latest_version") or {}).get("id") or "-")


def _since(worker: dict[str, Any]) -> str:
    return age(worker["connected_at"]) if worker["state"] == "online" else "-"


def _offers(worker: dict[str, Any]) -> str:
    return " ".join(sorted({str(offer["model"]) for offer in worker["models"]}))
