"""`cogflare providers`: hosted services that run predictions of your account, with your own keys."""

import os
import re
import sys
from collections.abc import Mapping
from typing import IO, Any, Final

import click

from cogflare.cli.client import Client, quoted, with_client
from cogflare.cli.money import money
from cogflare.cli.optionvalues import Number, Whole
from cogflare.cli.output import age, as_json, counted, note, print_fields, print_json, print_table, time_of, visible

KINDS: Final = ("replicate", "cogflare", "runpod")
KEY_VARIABLE: Final = "COGFLARE_PROVIDER_KEY"
_PROVIDERS: Final = "/v1/providers"
_LOOPBACK: Final = re.compile(r"127\.|\[::1\]|localhost\b")
_MAX_KEY: Final = 4096
_EVERYTHING: Final = 10_000
_SETTINGS: Final = ("max_concurrent", "price_per_s", "price_per_run")


@click.group()
def providers() -> None:
    """Add, check and remove providers: services that run predictions elsewhere, on your own key."""


@providers.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="What it is (default: the name, if that is one of these).")
@click.option("--base-url", metavar="URL", help="Address of its API, if it is not the service's own.")
@click.option(
    "--key-file",
    type=click.File(),
    metavar="FILE",
    help=f"File with the key; - is standard input. Else {KEY_VARIABLE}, else it is asked for.",
)
@click.option("--max-concurrent", type=Whole(1, 1000), default=20, show_default=True, help="Runs at a time.")
@click.option("--price-per-s", type=Number(0, 10_000), help="Dollars, where it tells no costs itself.")
@click.option("--price-per-run", type=Number(0, 10_000), help="Dollars, where it tells no costs itself.")
@as_json
@with_client
def add(
    client: Client,
    name: str,
    kind: str | None,
    base_url: str | None,
    key_file: IO[str] | None,
    max_concurrent: int,
    price_per_s: float | None,
    price_per_run: float | None,
    as_json: bool,
) -> None:
    """Add a provider, or give one a new key, and ask it whether the key works.

    The key is sent to your server, which keeps it sealed and shows it to nobody. It is no argument of this command:
    others on this machine can read a command line, and shells remember it.
    """
    kind = kind or name
    if kind not in KINDS:
        raise click.UsageError(f"say what {name} is: --kind {', --kind '.join(KINDS)}")
    if kind == "cogflare" and base_url is None:
        raise click.UsageError("say where that Cogflare is: --base-url https://host/v1")
    order = {
        "kind": kind,
        "base_url": base_url,
        "key": _key(key_file, name),
        "max_concurrent": max_concurrent,
        "price_per_s": price_per_s,
        "price_per_run": price_per_run,
    }
    added = client.put(f"{_PROVIDERS}/{quoted(name)}", order)
    if base_url is not None and base_url.lower().startswith("http://") and not _LOOPBACK.match(base_url[7:]):
        note("the key goes there unencrypted, and so does all else; is there an https address?")
    _told(added, as_json)


@providers.command("set")
@click.argument("name")
@click.option("--max-concurrent", type=Whole(1, 1000), help="Runs at a time.")
@click.option("--price-per-s", type=Number(0, 10_000), help="Dollars, where it tells no costs itself.")
@click.option("--price-per-run", type=Number(0, 10_000), help="Dollars, where it tells no costs itself.")
@as_json
@with_client
def set_provider(
    client: Client,
    name: str,
    max_concurrent: int | None,
    price_per_s: float | None,
    price_per_run: float | None,
    as_json: bool,
) -> None:
    """Change what holds for a provider; its key stays."""
    values = {"max_concurrent": max_concurrent, "price_per_s": price_per_s, "price_per_run": price_per_run}
    given = {setting: value for setting, value in values.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to set: --max-concurrent, --price-per-s or --price-per-run")
    known = client.get(f"{_PROVIDERS}/{quoted(name)}")
    kept = {field: known[field] for field in ("kind", "base_url", *_SETTINGS)}
    _told(client.put(f"{_PROVIDERS}/{quoted(name)}", {**kept, **given}), as_json)


@providers.command("list")
@as_json
@with_client
def list_providers(client: Client, as_json: bool) -> None:
    """List providers."""
    found = client.pages(_PROVIDERS, _EVERYTHING)
    if as_json:
        for provider in found:
            print_json(provider)
        return
    rows = (
        (p["name"], p["kind"], p["base_url"], _hint(p), f"{p['running']}/{p['max_concurrent']}", _state(p))
        for p in found
    )
    columns = ("name", "kind", "address", "key", "running", "state")
    print_table(columns, rows, "no providers: `cogflare providers add replicate` adds one")


@providers.command()
@click.argument("name")
@as_json
@with_client
def show(client: Client, name: str, as_json: bool) -> None:
    """Show a provider; of its key only how it begins."""
    found = client.get(f"{_PROVIDERS}/{quoted(name)}")
    if as_json:
        print_json(found)
    else:
        _print(found)


@providers.command()
@click.argument("name")
@click.option("--endpoint", metavar="ID", help="Of RunPod: the endpoint to ask about its workers.")
@as_json
@with_client
def check(client: Client, name: str, endpoint: str | None, as_json: bool) -> None:
    """Ask a provider whether the key works; one that was paused goes on when it does."""
    _told(client.post(f"{_PROVIDERS}/{quoted(name)}/check", endpoint=endpoint), as_json)


@providers.command()
@click.argument("name")
@with_client
def remove(client: Client, name: str) -> None:
    """Remove a provider and forget its key."""
    client.delete(f"{_PROVIDERS}/{quoted(name)}")
    note(f"removed {name}, and its key; routes that name it pass it over")


def _key(file: IO[str] | None, name: str) -> str:
    """Return the key, from wherever it is no argument; blanks and line ends around it are none of it."""
    if file is not None:
        key = file.read(_MAX_KEY + 2).strip()
    elif os.environ.get(KEY_VARIABLE):
        key = os.environ[KEY_VARIABLE].strip()
    elif sys.stdin.isatty():
        key = str(click.prompt(f"Key of {name} (not shown)", hide_input=True, err=True)).strip()
    else:
        raise click.UsageError(f"no key: pass it with --key-file FILE, --key-file - (standard input) or {KEY_VARIABLE}")
    if not key or len(key) > _MAX_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise click.UsageError("that is no key: one line of printable characters without blanks; was it copied whole?")
    return key


def _told(provider: Mapping[str, Any], as_json: bool) -> None:
    """Print a provider that was just checked; the exit code tells whether it works."""
    report = provider["check"]
    if as_json:
        print_json(provider)
    else:
        _print(provider)
        note(f"checked: {visible(report['text'])}")
        if report["workers"] is not None:
            note(f"it has {counted(report['workers'], 'worker')} that could run something now")
    if not report["ok"]:
        if not as_json:
            note(f"it is kept all the same; `cogflare providers check {provider['name']}` asks again")
        raise SystemExit(1)


def _print(provider: Mapping[str, Any]) -> None:
    prices = [
        f"{money(provider[field])} a {unit}"
        for field, unit in (("price_per_s", "second"), ("price_per_run", "run"))
        if provider[field] is not None
    ]
    print_fields(
        [
            *((field, provider[field]) for field in ("name", "kind")),
            ("address", provider["base_url"]),
            ("key", _hint(provider)),
            ("running", f"{provider['running']} of {provider['max_concurrent']} at a time"),
            ("price", " and ".join(prices) or "as it tells itself"),
            ("state", _state(provider)),
            ("added", time_of(provider["created_at"])),
            ("changed", age(provider["changed_at"])),
        ]
    )


def _hint(provider: Mapping[str, Any]) -> str:
    return f"{provider['key_hint']}…"


def _state(provider: Mapping[str, Any]) -> str:
    paused = provider["paused"]
    if paused is None:
        return "ok"
    until = f" until {time_of(paused['until'])}" if paused["until"] else ""
    return f"paused{until}: {paused['reason']}"
