"""`cogflare predictions`: what was asked for, how it went, and on whom it ran."""

from typing import Any

import click

from cogflare.cli.client import ApiError, Client, with_client
from cogflare.cli.fleet import MODEL
from cogflare.cli.following import Feed, follow
from cogflare.cli.output import (
    age,
    as_json,
    cell,
    duration,
    for_terminal,
    print_fields,
    print_json,
    print_table,
    time_of,
)
from cogflare.domain.phases import Status


@click.group()
def predictions() -> None:
    """List, look at and cancel predictions."""


@predictions.command("list")
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only those with this status.")
@click.option("--model", metavar="OWNER/NAME", help="Only those of this model.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, newest first.")
@as_json
@with_client
def list_predictions(client: Client, status: str | None, model: str | None, limit: int, as_json: bool) -> None:
    """List predictions, newest first."""
    if model is not None and not MODEL.fullmatch(model):
        raise click.UsageError(f"{model!r} is no model: write owner/name")
    found = client.pages("/v1/predictions", limit, status=status, model=model)
    if as_json:
        for prediction in found:
            print_json(prediction)
        return
    rows = (
        (p["id"], p["model"], p["status"], age(p["created_at"]), _ran(p), _brief(p.get("error") or p.get("output")))
        for p in found
    )
    print_table(("id", "model", "status", "created", "ran", "output or error"), rows, "no predictions")


@predictions.command()
@click.argument("prediction_id", metavar="ID")
@as_json
@with_client
def show(client: Client, prediction_id: str, as_json: bool) -> None:
    """Show one prediction in full, without its logs."""
    prediction = client.get(f"/v1/predictions/{prediction_id}")
    if as_json:
        print_json(prediction)
        return
    metrics = prediction.get("metrics") or {}
    print_fields(
        [
            *((name, prediction.get(name)) for name in ("id", "model", "version", "status", "error")),
            ("created", time_of(prediction.get("created_at"))),
            ("started", time_of(prediction.get("started_at"))),
            ("completed", time_of(prediction.get("completed_at"))),
            *((name.replace("_", " "), f"{value} s") for name, value in metrics.items() if name.endswith("_time")),
            *((name.replace("_", " "), value) for name, value in metrics.items() if not name.endswith("_time")),
            ("input", prediction.get("input")),
            ("output", prediction.get("output")),
        ]
    )


@predictions.command()
@click.argument("prediction_ids", metavar="ID...", nargs=-1, required=True)
@with_client
def cancel(client: Client, prediction_ids: tuple[str, ...]) -> None:
    """Cancel predictions; one that has ended stays as it is."""
    refused = False
    for prediction_id in prediction_ids:
        try:
            state = client.post(f"/v1/predictions/{prediction_id}/cancel")
        except ApiError as error:
            click.echo(f"{prediction_id}\t{error.message}", err=True)
            refused = True
        else:
            click.echo(f"{prediction_id}\t{state['status']}")
    if refused:
        raise SystemExit(ApiError.exit_code)


@predictions.command()
@click.argument("prediction_id", metavar="ID")
@click.option("--follow", "-f", "is_followed", is_flag=True, help="Go on until the prediction has ended.")
@with_client
def logs(client: Client, prediction_id: str, is_followed: bool) -> None:
    """Print what the model logged."""
    prediction = client.get(f"/v1/predictions/{prediction_id}")
    if is_followed:
        follow(client, prediction, Feed(None, None, logs_only=True))
    else:
        click.echo(for_terminal(prediction.get("logs") or ""), nl=False)


@predictions.command()
@click.argument("prediction_id", metavar="ID")
@as_json
@with_client
def attempts(client: Client, prediction_id: str, as_json: bool) -> None:
    """Show every try: which worker had it, and how that ended."""
    found = client.get(f"/v1/predictions/{prediction_id}/attempts")["results"]
    if as_json:
        for attempt in found:
            print_json(attempt)
        return
    columns = ("attempt", "worker", "claimed_at", "started_at", "ended_at", "outcome", "reason", "slot_freed_at")
    rows = ([time_of(a.get(name)) if name.endswith("_at") else a.get(name) for name in columns] for a in found)
    titles = [name.removesuffix("_at").replace("_", " ") for name in columns]
    print_table(titles, rows, "no worker has had it yet")


def _ran(prediction: dict[str, Any]) -> str:
    return duration((prediction.get("metrics") or {}).get("predict_time"))


def _brief(value: Any, limit: int = 60) -> str:
    text = cell("".join(value) if isinstance(value, list) and all(isinstance(i, str) for i in value) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
