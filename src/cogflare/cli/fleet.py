"""`cogflare models`, `cogflare workers` and `cogflare account`: what there is to run, on what, and as whom."""

import re
from typing import Any, Final

import click

from cogflare.cli import machines, workerlist
from cogflare.cli.client import Client, quoted, with_client
from cogflare.cli.inputs import input_rows
from cogflare.cli.optionvalues import Number, TagName, Whole
from cogflare.cli.output import (
    age,
    as_json,
    duration,
    note,
    print_fields,
    print_json,
    print_table,
)
from cogflare.cli.tokens import Duration

MODEL: Final = re.compile(r"[^/:\s]+/[^/:\s]+")
_EVERYTHING: Final = 10_000
_MAX_VRAM_GB: Final = 100_000


class Limit(click.ParamType[float | str]):
    """A time such as `10m`, in seconds; `never` is 0, and `default` what the server has."""

    name = "limit"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Read the text of the command line."""
        if value == "default" or isinstance(value, float):
            return value
        return 0.0 if value == "never" else float(Duration().convert(value, param, ctx))


class Vram(click.ParamType[float | str]):
    """Gigabytes of GPU memory; `none` asks for none."""

    name = "gigabytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Read the text of the command line."""
        return value if value == "none" else Number(0, _MAX_VRAM_GB, is_open=True)(value, param, ctx)


class Count(click.ParamType[int | str]):
    """A number from 1 on; `default` is what the server has."""

    name = "count"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Read the text of the command line."""
        return value if value == "default" else Whole(1)(value, param, ctx)


@click.group()
def models() -> None:
    """Look at the models that can be run, and set what holds for them."""


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
    rows = ((f"{m['owner']}/{m['name']}", m["run_count"], _version(m)[:12], _description(m)) for m in found)
    print_table(("model", "runs", "version", "description"), rows, "no models yet: `cogflare worker` connects one")


@models.command("show")
@click.argument("model", metavar="OWNER/NAME")
@as_json
@with_client
def show_model(client: Client, model: str, as_json: bool) -> None:
    """Show a model and the inputs it takes."""
    if not MODEL.fullmatch(model):
        raise click.UsageError(f"{model!r} is no model: write owner/name")
    found = client.get(f"/v1/models/{quoted(*model.split('/'))}")
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("model", f"{found['owner']}/{found['name']}"),
            ("description", _description(found)),
            ("version", _version(found)),
            ("runs", found["run_count"]),
            *_limits(found["limits"]),
            ("requires", machines.required(found)),
        ]
    )
    rows = input_rows((found["latest_version"] or {}).get("openapi_schema"))
    print_table(
        ("input", "type", "default", "description"),
        rows,
        "its inputs are not declared: `cog build` in its folder would do that",
    )


@models.command("set")
@click.argument("model", metavar="OWNER/NAME")
@click.option("--run-limit", type=Limit(), metavar="TIME", help="How long it may run: 10m, never, or default.")
@click.option("--start-limit", type=Limit(), metavar="TIME", help="How long a prediction may wait for its start.")
@click.option("--max-queued", type=Count(), metavar="NUMBER", help="How many may wait: a number, or default.")
@click.option("--rerun/--no-rerun", default=None, help="Whether text that was shown may be made anew after a loss.")
@click.option("--description", help="What it is, in words.")
@click.option("--min-vram-gb", type=Vram(), metavar="NUMBER", help="GPU memory that its workers must have, or none.")
@click.option(
    "--require-tag",
    "tags",
    multiple=True,
    type=TagName(),
    metavar="TAG",
    help="A tag that its workers must have, or none.",
)
@with_client
def set_model(
    client: Client,
    model: str,
    run_limit: float | str | None,
    start_limit: float | str | None,
    max_queued: int | str | None,
    rerun: bool | None,
    description: str | None,
    min_vram_gb: float | str | None,
    tags: tuple[str, ...],
) -> None:
    """Set what holds for a model of your account (an admin: also for shared ones).

    The tags that are given replace those that were required before.
    """
    if not MODEL.fullmatch(model):
        raise click.UsageError(f"{model!r} is no model: write owner/name")
    wanted = {
        "run_limit_s": run_limit,
        "start_limit_s": start_limit,
        "max_queued": max_queued,
        "rerun": rerun,
        "description": description,
    }
    given: dict[str, Any] = {
        name: None if value == "default" else value for name, value in wanted.items() if value is not None
    }
    if description is not None:
        given["description"] = description
    path = f"/v1/models/{quoted(*model.split('/'))}"
    if min_vram_gb is not None or tags:
        given["requirements"] = machines.requiring(client.get(path), min_vram_gb, tags)
    if not given:
        raise click.UsageError("nothing to set: see cogflare models set --help")
    changed = client.patch(path, given)
    about = [("description", _description(changed)), *_limits(changed["limits"])]
    print_fields([*about, ("requires", machines.required(changed))])


@click.group()
def workers() -> None:
    """Look at the workers and send them home."""


@workers.command("list")
@click.option(
    "--all", "everyone", is_flag=True, help="Also those that left over an hour ago (not well: over a day ago)."
)
@as_json
@with_client
def list_workers(client: Client, everyone: bool, as_json: bool) -> None:
    """List workers and what they do; --json has all, others leave out who has been away for long."""
    found = client.pages("/v1/workers", _EVERYTHING)
    if as_json:
        for worker in found:
            print_json(worker)
        return
    workerlist.show(list(found), everyone)


@workers.command("show")
@click.argument("worker_id", metavar="ID")
@as_json
@with_client
def show_worker(client: Client, worker_id: str, as_json: bool) -> None:
    """Show a worker: what it runs, on what machine, and what its token allows."""
    found = client.get(f"/v1/workers/{quoted(worker_id)}")
    if as_json:
        print_json(found)
        return
    busy = f"{found['busy']} of {found['slots']} slots"
    print_fields(
        [
            *((name, found[name]) for name in ("id", "name", "account", "state", "node")),
            ("connected", workerlist.since(found)),
            ("set up", f"began {age(found['setup_since'])}" if found["setup_since"] else None),
            ("busy", busy),
            ("health", workerlist.health(found)),
            *machines.fields(found),
        ]
    )
    print_table(("model", "version", "slots", "gets work"), machines.offers(found), "it has told of no model yet")


@workers.command()
@click.argument("worker_id", metavar="ID")
@with_client
def drain(client: Client, worker_id: str) -> None:
    """Let a worker finish what it runs and leave."""
    client.post(f"/v1/workers/{quoted(worker_id)}/drain")
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


def _limits(limits: dict[str, Any]) -> list[tuple[str, str]]:
    def time(seconds: float | None) -> str:
        return "the server's" if seconds is None else duration(seconds) if seconds else "never"

    most = limits["max_queued"]
    return [
        ("run limit", time(limits["run_limit_s"])),
        ("start limit", time(limits["start_limit_s"])),
        ("may wait", "the server's" if most is None else str(most)),
        ("rerun", "yes" if limits["rerun"] else "no"),
    ]


def _description(model: dict[str, Any]) -> str | None:
    """Return what an operator has said of a model, else what its version says of itself."""
    schema = (model["latest_version"] or {}).get("openapi_schema") or {}
    told = (schema.get("info") or {}).get("description")
    return model["description"] or (told if isinstance(told, str) else None)


def _version(model: dict[str, Any]) -> str:
    return str((model.get("latest_version") or {}).get("id") or "-")
