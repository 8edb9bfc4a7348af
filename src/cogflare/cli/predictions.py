"""`cogflare predictions`: what was asked for, how it went, and on whom it ran."""

from collections.abc import Iterable
from typing import Any, Final

import click

from cogflare.cli.client import ApiError, Client, quoted, with_client
from cogflare.cli.fleet import MODEL
from cogflare.cli.following import Feed, follow
from cogflare.cli.optionvalues import Whole
from cogflare.cli.output import (
    age,
    as_json,
    cell,
    duration,
    for_terminal,
    note,
    print_fields,
    print_json,
    print_table,
    time_of,
)
from cogflare.cli.reasons import receipt, why
from cogflare.domain.phases import TERMINAL, Status

_EVERYTHING: Final = 1_000_000
_LIVE: Final = [str(status) for status in Status if status not in TERMINAL]


@click.group()
def predictions() -> None:
    """List, look at, cancel and requeue predictions; see why one waits, and what one has cost."""


predictions.add_command(why)
predictions.add_command(receipt)


@predictions.command("list")
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only those with this status.")
@click.option("--model", metavar="OWNER/NAME", help="Only those of this model.")
@click.option("--struck-out", is_flag=True, help="Only those that failed because their workers were lost.")
@click.option("--limit", type=Whole(1), default=20, show_default=True, help="How many, newest first.")
@as_json
@with_client
def list_predictions(
    client: Client, status: str | None, model: str | None, struck_out: bool, limit: int, as_json: bool
) -> None:
    """List predictions, newest first."""
    if model is not None and not MODEL.fullmatch(model):
        raise click.UsageError(f"{model!r} is no model: write owner/name")
    flag = "true" if struck_out else None
    found = client.pages("/v1/predictions", limit, status=status, model=model, struck_out=flag)
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
    prediction = client.get(f"/v1/predictions/{quoted(prediction_id)}")
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
@click.argument("prediction_ids", metavar="[ID...]", nargs=-1)
@click.option("--status", type=click.Choice(_LIVE), help="All that have this status.")
@click.option("--model", metavar="OWNER/NAME", help="All of this model.")
@click.option("--created-after", metavar="TIME", help="All from this time on, such as 2026-01-31T12:00:00Z.")
@click.option("--created-before", metavar="TIME", help="All from before this time.")
@click.option("--all", "is_all", is_flag=True, help="All that have not ended.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_client
def cancel(
    client: Client,
    prediction_ids: tuple[str, ...],
    status: str | None,
    model: str | None,
    created_after: str | None,
    created_before: str | None,
    is_all: bool,
    yes: bool,
) -> None:
    """Cancel predictions, by id or all that the options together name; one that has ended stays as it is."""
    filters = {"status": status, "model": model, "created_after": created_after, "created_before": created_before}
    given = {name: value for name, value in filters.items() if value is not None}
    if bool(prediction_ids) == bool(given or is_all):
        raise click.UsageError("name predictions, or say with options which: --status, --model, --all, …")
    if model is not None and not MODEL.fullmatch(model):
        raise click.UsageError(f"{model!r} is no model: write owner/name")
    if prediction_ids:
        _ask_each(client, prediction_ids, "cancel", "status")
        return
    what = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
    if not yes:
        _ask(f"Cancel all predictions that have not ended{f' ({what})' if what else ''}?")
    _cancel_matching(client, {**given, "all": "true"})


def _ask(question: str) -> None:
    """Go on only after a yes."""
    try:
        is_sure = click.confirm(question, err=True)
    except click.Abort:
        is_sure = False
        note("")
    if not is_sure:
        note("nothing was canceled; --yes does not ask")
        raise click.Abort


def _cancel_matching(client: Client, filters: dict[str, str]) -> None:
    canceled, more = 0, True
    while more:
        answer = client.post("/v1/predictions/cancel", **filters)
        canceled, more = canceled + answer["canceled"], answer["more"]
        if more:
            note(f"{canceled} canceled, and more to come")
    click.echo(f"{canceled}\tcanceled")


def _ask_each(client: Client, prediction_ids: Iterable[str], verb: str, field: str) -> None:
    """Ask the same of each and print this field of each answer; the exit code tells of those that were refused."""
    refused = False
    for prediction_id in prediction_ids:
        try:
            answer = client.post(f"/v1/predictions/{quoted(prediction_id)}/{verb}")
        except ApiError as error:
            click.echo(f"{prediction_id}\t{error.message}", err=True)
            refused = True
        else:
            click.echo(f"{prediction_id}\t{answer[field]}")
    if refused:
        raise SystemExit(ApiError.exit_code)


@predictions.command()
@click.argument("prediction_ids", metavar="[ID...]", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="All that failed because their workers were lost.")
@with_client
def requeue(client: Client, prediction_ids: tuple[str, ...], is_all: bool) -> None:
    """Make new predictions of some that failed or were canceled; prints the old and the new id of each."""
    if bool(prediction_ids) == is_all:
        raise click.UsageError("name predictions, or --all")
    struck_out = client.pages("/v1/predictions", _EVERYTHING, struck_out="true") if is_all else ()
    ids = prediction_ids or (str(prediction["id"]) for prediction in struck_out)
    _ask_each(client, ids, "requeue", "id")


@predictions.command()
@click.argument("prediction_id", metavar="ID")
@click.option("--follow", "-f", "is_followed", is_flag=True, help="Go on until the prediction has ended.")
@with_client
def logs(client: Client, prediction_id: str, is_followed: bool) -> None:
    """Print what the model logged."""
    prediction = client.get(f"/v1/predictions/{quoted(prediction_id)}")
    if is_followed:
        follow(client, prediction, Feed(None, None, logs_only=True))
    else:
        click.echo(for_terminal(prediction.get("logs") or ""), nl=False)


@predictions.command()
@click.argument("prediction_id", metavar="ID")
@as_json
@with_client
def attempts(client: Client, prediction_id: str, as_json: bool) -> None:
    """Show every try: which worker or provider had it, and how that ended."""
    found = client.get(f"/v1/predictions/{quoted(prediction_id)}/attempts")["results"]
    if as_json:
        for attempt in found:
            print_json(attempt)
        return
    columns = ("attempt", "worker", "claimed_at", "started_at", "ended_at", "outcome", "reason", "slot_freed_at")
    tries = ({**attempt, "worker": attempt["worker"] or attempt.get("provider")} for attempt in found)
    rows = ([time_of(a.get(name)) if name.endswith("_at") else a.get(name) for name in columns] for a in tries)
    titles = [name.removesuffix("_at").replace("_", " ") for name in columns]
    print_table(titles, rows, "no worker has had it yet")


def _ran(prediction: dict[str, Any]) -> str:
    return duration((prediction.get("metrics") or {}).get("predict_time"))


def _brief(value: Any, limit: int = 60) -> str:
    text = cell("".join(value) if isinstance(value, list) and all(isinstance(i, str) for i in value) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
