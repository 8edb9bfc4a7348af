"""`cogflare tokens`: who may use the server, and as what."""

import re
import shlex
from collections.abc import Mapping
from typing import Any, Final

import click
import msgspec

from cogflare.agent.address import ServerAddress
from cogflare.cli.client import Client, quoted, with_client
from cogflare.cli.optionvalues import Line, Whole, shown
from cogflare.cli.output import age, as_json, counted, note, print_fields, print_json, print_table, time_of
from cogflare.cli.tokenimport import import_tokens
from cogflare.domain.scopes import ModelPattern, named

_DURATION: Final = re.compile(r"(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?")
_ACCOUNT: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_LONGEST_S: Final = 36_600 * 86_400
_SCALES_S: Final = (86_400, 3_600, 60, 1)
_EVERYTHING: Final = 10_000
_TIMES: Final = ("created_at", "expires_at", "revoked_at")


class Duration(click.ParamType[int]):
    """A time such as `30d` or `1h30m`, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text of the command line."""
        if isinstance(value, int):
            return value
        found = _DURATION.fullmatch(str(value))
        total_s = (
            sum(int(part or 0) * scale for part, scale in zip(found.groups(), _SCALES_S, strict=True)) if found else 0
        )
        if total_s > _LONGEST_S:
            self.fail(f"{shown(value)} is longer than a hundred years", param, ctx)
        if total_s <= 0:
            self.fail(f"{shown(value)} is no duration such as 30d, 12h or 1h30m", param, ctx)
        return total_s


class ModelName(click.ParamType[str]):
    """`owner/name`, or `owner/*`."""

    name = "model"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text of the command line."""
        try:
            return msgspec.convert(value, ModelPattern)
        except msgspec.ValidationError:
            self.fail(f"{shown(value)} is not of the form owner/name or owner/*", param, ctx)


class AccountName(click.ParamType[str]):
    """The name of an account."""

    name = "name"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text of the command line."""
        if not _ACCOUNT.fullmatch(str(value)):
            form = "letters, digits and . _ -, 64 at most, a letter or digit first"
            self.fail(f"{shown(value)} is no name of an account: {form}", param, ctx)
        return str(value)


@click.group()
def tokens() -> None:
    """Create, list and revoke tokens (takes an admin token)."""


@tokens.command()
@click.option(
    "--kind",
    type=click.Choice(["api", "worker", "admin"]),
    required=True,
    help="What it is for: clients, workers, or operators.",
)
@click.option("--name", type=Line(100, least=1), required=True, help="What you will know it by.")
@click.option(
    "--account",
    type=AccountName(),
    help="The account it belongs to, made if new: letters, digits, . _ - (default: your own).",
)
@click.option("--expires-in", type=Duration(), metavar="DURATION", help="When it ends, such as 30d (default: never).")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=ModelName(),
    metavar="OWNER/NAME",
    help="The only model that a worker may offer with it; OWNER/* are all of an owner's. May be given again.",
)
@click.option("--connections", type=Whole(1, 1_000_000), help="How many workers may be connected with it at once.")
@click.option("--join", is_flag=True, help="Print the line that makes another machine a worker, instead of the token.")
@as_json
@with_client
def create(
    client: Client,
    kind: str,
    name: str,
    account: str | None,
    expires_in: int | None,
    models: tuple[str, ...],
    connections: int | None,
    join: bool,
    as_json: bool,
) -> None:
    """Create a token and print it, once: the server keeps only its hash.

    A worker's token for a friend is best limited: --model, --connections and --expires-in.
    """
    if kind != "worker" and (models or connections or join):
        raise click.UsageError("--model, --connections and --join are for tokens of workers: --kind worker")
    wanted = {
        "kind": kind,
        "name": name,
        "account": account,
        "expires_in_s": expires_in,
        "models": list(models) or None,
        "max_connections": connections,
    }
    created = client.post("/v1/tokens", {key: value for key, value in wanted.items() if value is not None})
    if as_json:
        print_json(created | ({"join_lines": _join_lines(created)} if join else {}))
        return
    if join:
        note(f"worker token {created['id']} for the account {created['account']}; it is shown only now.")
        _show_join(created)
        return
    note(f"{kind} token {created['id']} for the account {created['account']}; it is shown only now:")
    click.echo(created["token"])


def _show_join(created: Mapping[str, Any]) -> None:
    note("Run this on the machine that is to be a worker (it reads the token from the line):")
    for line in _join_lines(created):
        click.echo(line)
    if not named(created["models"] or []):
        note("Put the model in the place of OWNER/MODEL.")
    if ServerAddress(created["join"]).is_here:
        note("This address is good on this machine alone: public_url, a setting of the server, is what others reach.")


def _join_lines(created: Mapping[str, Any]) -> list[str]:
    """Return what to run on another machine: a line for each model that the token names, or one to fill in."""
    models = named(created["models"] or []) or ["OWNER/MODEL"]
    return [f"curl -fsSL {shlex.quote(created['join'])} | sh -s -- {created['token']} {model}" for model in models]


@tokens.command("list")
@as_json
@with_client
def list_tokens(client: Client, as_json: bool) -> None:
    """List tokens: never the secret, only how it begins."""
    found = client.pages("/v1/tokens", _EVERYTHING)
    if as_json:
        for token in found:
            print_json(token)
        return
    columns = ("id", "kind", "name", "account", "hint", "created_at", "expires_at", "revoked_at", "limits")
    rows = ([_limits(t) if name == "limits" else _shown(name, t.get(name)) for name in columns] for t in found)
    print_table([name.removesuffix("_at") for name in columns], rows, "no tokens")


def _shown(column: str, value: str | None) -> str | None:
    """Return a cell: what is past as an age, which is short, and the end of a token as a date."""
    if column == "expires_at":
        return time_of(value)
    return age(value) if column.endswith("_at") else value


@tokens.command()
@click.argument("token_id", metavar="ID")
@as_json
@with_client
def show(client: Client, token_id: str, as_json: bool) -> None:
    """Show a token: what it is limited to, and how many workers are connected with it."""
    token = client.get(f"/v1/tokens/{quoted(token_id)}")
    if as_json:
        print_json(token)
        return
    fields = [(name, token.get(name)) for name in ("id", "kind", "name", "account", "hint")]
    fields += [(name.removesuffix("_at"), _shown(name, token.get(name))) for name in _TIMES]
    if token["kind"] == "worker":
        most = token["max_connections"]
        fields.append(("models", ", ".join(token["models"] or ["any"])))
        fields.append(("connected", f"{token['connections']} of at most {most}" if most else token["connections"]))
    print_fields(fields)


def _limits(token: Mapping[str, Any]) -> str:
    """Return what a token is limited to, in short."""
    most = token["max_connections"]
    return "; ".join([*(token["models"] or []), *([counted(most, "connection")] if most else [])])


@tokens.command()
@click.argument("token_id", metavar="ID")
@with_client
def revoke(client: Client, token_id: str) -> None:
    """Revoke a token; whoever uses it is refused from now on."""
    client.delete(f"/v1/tokens/{quoted(token_id)}")
    note(f"revoked {token_id}")


tokens.add_command(import_tokens)
