"""`cogflare predictions why` and `receipt`: why a prediction is where it is, and what it took."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from cogflare.cli.client import Client, quoted, with_client
from cogflare.cli.money import money
from cogflare.cli.output import as_json, counted, duration, print_fields, print_json, print_table, time_of, visible

_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_FIGURES: Final = {
    "waited_s": "waited",
    "expected_s": "whole wait expected",
    "queued": "place",
    "workers": "workers",
    "slots": "slots",
    "free": "free",
}


@click.command()
@click.argument("prediction_id", metavar="ID")
@as_json
@with_client
def why(client: Client, prediction_id: str, as_json: bool) -> None:
    """Say why a prediction waits, or is where it is: the reason, its place, and when it is going to start."""
    found = client.get(f"/v1/predictions/{quoted(prediction_id)}", explain=1)
    reason = found.get("explanation")
    if reason is None:
        raise click.ClickException("this server does not explain predictions; it is an older one")
    if as_json:
        print_json(reason)
        return
    click.echo(visible(reason["text"]))
    print_fields([("status", found["status"]), ("reason", reason["code"]), *_waiting(reason), *_routed(reason)])


def _waiting(reason: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    queue, eta = reason["queue"], reason["eta"]
    if reason["position"] is not None:
        of = f" of {queue['waiting']} that wait" if queue and queue["waiting"] >= reason["position"] else ""
        yield "place", f"{reason['position']}{of}"
    if eta is not None:
        band = f"between {duration(eta['low_s'])} and {duration(eta['high_s'])}"
        yield "starts in", f"{duration(eta['mid_s'])} ({band}), at {time_of(eta['at'])}"
    if queue is not None:
        yield "workers", f"{queue['workers']} with {counted(queue['slots'], 'slot')}, {queue['free']} free"
        if queue["mean_run_s"] is not None:
            yield "runs take", f"{duration(queue['mean_run_s'])} on average"
        for what in ("quarantined", "unfit", "starting", "away"):
            for worker in queue.get(what, []):
                yield what, f"{worker['name']}{': ' + worker['reason'] if worker['reason'] else ''}"
    if reason["retry_at"] is not None:
        yield "queued again", time_of(reason["retry_at"])


def _routed(reason: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    decision = reason["decision"]
    if decision is not None:
        # What the reason has said already is not said twice.
        is_told = decision["text"].lower() in reason["text"].lower()
        yield "route", f"{decision['hop'] or 'nowhere'} ({decision['code']})" if is_told else _decided(decision)
        if decision["figures"] is not None:
            yield "figures", _figures(decision["figures"])
    for name, text in reason["blocked"].items():
        yield "not used", f"{name}: {text}"


def _decided(decision: Mapping[str, Any]) -> str:
    return f"{decision['hop'] or 'nowhere'} ({decision['code']}): {decision['text']}"


def _figures(figures: Mapping[str, Any]) -> str:
    shown = [
        f"{title} {duration(figures[name]) if name.endswith('_s') else figures[name]}"
        for name, title in _FIGURES.items()
        if figures.get(name) is not None
    ]
    return ", ".join(shown)


@click.command()
@click.argument("prediction_id", metavar="ID")
@as_json
@with_client
def receipt(client: Client, prediction_id: str, as_json: bool) -> None:
    """Show what a prediction took: where it ran and why there, seconds, bytes, and what it cost."""
    found = client.get(f"/v1/predictions/{quoted(prediction_id)}/receipt")
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            *((name, found[name]) for name in ("id", "model", "version", "status")),
            ("route", None if found["route"] is None else _decided(found["route"])),
            *((name, duration(found[f"{name}_s"])) for name in ("queue", "setup", "run", "total")),
            ("input", _volume(found["input"])),
            ("output", _volume(found["output"])),
            ("cost", money(found["cost"])),
        ]
    )
    columns = ("attempt", "where", "GPU", "queue", "setup", "run", "outcome", "cost", "reason")
    print_table(columns, (_row(attempt) for attempt in found["attempts"]), "nothing has had it yet")


def _row(attempt: Mapping[str, Any]) -> list[Any]:
    name = f"{attempt['place']} {attempt['name'] or '?'}{' (shared)' if attempt['is_shared'] else ''}"
    times = [duration(attempt[f"{part}_s"]) for part in ("queue", "setup", "run")]
    cost = f"{money(attempt['cost'])}{' (in doubt)' if attempt['is_in_doubt'] else ''}"
    return [attempt["attempt"], name, attempt["gpu"], *times, attempt["outcome"], cost, attempt["reason"]]


def _volume(volume: Mapping[str, Any]) -> str:
    files = volume["files"]
    beside = f", and {counted(files, 'file')} of {_size(volume['file_bytes'])}" if files else ""
    return f"{'removed' if volume['json'] is None else _size(volume['json'])}{beside}"


def _size(count: int) -> str:
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return counted(count, "byte")
