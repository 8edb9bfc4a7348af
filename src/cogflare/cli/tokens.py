"""`cogflare tokens`: who may use the server, and as what."""

import re
from typing import Final

import click

from cogflare.cli.client import Client, quoted, with_client
from cogflare.cli.output import age, as_json, note, print_json, print_table, time_of

_DURATION: Final = re.compile(r"(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?")
_SCALES_S: Final = (86_400, 3_600, 60, 1)
_EVERYTHING: Final = 10_000


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
        if total_s <= 0:
            self.fail(f"{value!r} is no duration such as 30d, 12h or 1h30m", param, ctx)
        return total_s


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
@click.option("--name", required=True, help="What you will know it by.")
@click.option("--account", help="The account it belongs to, made if new: letters, digits, . _ - (default: your own).")
@click.option("--expires-in", type=Duration(), metavar="DURATION", help="When it ends, such as 30d (default: never).")
@as_json
@with_client
def create(client: Client, kind: str, name: str, account: str | None, expires_in: int | None, as_json: bool) -> None:
    """Create a token and print it, once: the server keeps only its hash."""
    wanted = {"kind": kind, "name": name, "account": account, "expires_in_s": expires_in}
    created = client.post("/v1/tokens", {key: value for key, value in wanted.items() if value is not None})
    if as_json:
        print_json(created)
        return
    note(f"{kind} token {created['id']} for the account {created['account']}; it is shown only now:")
    click.echo(created["token"])


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
    columns = ("id", "kind", "name", "account", "hint", "created_at", "expires_at", "revoked_at")
    rows = ([_shown(name, t.get(name)) for name in columns] for t in found)
    print_table([name.removesuffix("_at") for name in columns], rows, "no tokens")


def _shown(column: str, value: str | None) -> str | None:
    """Return a cell: what is past as an age, which is short, and the end of a token as a date."""
    if column == "expires_at":
        return time_of(value)
    return age(value) if column.endswith("_at") else value


@tokens.command()
@click.argument("token_id", metavar="ID")
@with_client
def revoke(client: Client, token_id: str) -> None:
    """Revoke a token; whoever uses it is refused from now on."""
    client.delete(f"/v1/tokens/{quoted(token_id)}")
    note(f"revoked {token_id}")
