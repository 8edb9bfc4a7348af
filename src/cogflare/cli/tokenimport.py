"""`cogflare tokens import`: the token store of the first Cogflare, as it was exported.

No secret of the file is printed: entries are told apart by their place in it, and by the account that they become.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

import click
import msgspec

from cogflare.cli.client import Client, with_client
from cogflare.cli.output import as_json, note, print_json, print_table

_BATCH: Final = 50
_FORMS: Final = 'an object {"token": {…}, …}, a list of {"key", "value"}, or such objects line by line'

Entry = dict[str, Any]


def read_entries(text: bytes) -> list[Entry]:
    """Read an export: entries with `key` and `value`, whichever way it was written. Raises `UsageError`."""
    try:
        document = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        document = _lines(text)
    if isinstance(document, dict) and not _is_entry(document):
        return [{"key": key, "value": value} for key, value in document.items()]
    entries = [document] if isinstance(document, dict) else document
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise click.UsageError(f"the file is no export of a token store: {_FORMS}")
    return [{"key": entry.get("key", entry.get("name")), "value": entry["value"]} for entry in entries]


def _lines(text: bytes) -> list[Any]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found += [msgspec.json.decode(line)] if line.strip() else []
        except (ValueError, RecursionError):
            # Nothing of the line is shown, nor of the parser's words: it has secrets in it.
            raise click.UsageError(f"line {number} of the file is not JSON; it has to be {_FORMS}") from None
    return found


def _is_entry(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return "value" in value and isinstance(value.get("key", value.get("name")), str)


def _named(entries: Sequence[Entry], text: bytes) -> None:
    """Give entries the accounts of a map from tokens to names; raises `UsageError`."""
    try:
        names = msgspec.json.decode(text, type=dict[str, str])
    except (ValueError, RecursionError):
        raise click.UsageError('the map of accounts has to be an object {"token": "account", …}') from None
    for entry in entries:
        if entry["key"] in names:
            entry["account"] = names[entry["key"]]


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--accounts",
    metavar="FILE",
    type=click.File("rb"),
    help='Which account a token becomes, as JSON {"token": "account"} (default: one of its own, named after its hash).',
)
@click.option("--check", is_flag=True, help="Ask Replicate whether each key works.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@as_json
@with_client
def import_tokens(
    client: Client, file: IO[bytes], accounts: IO[bytes] | None, check: bool, dry_run: bool, as_json: bool
) -> None:
    """Take the tokens of a Cogflare of 2022 from its exported store (- is standard input).

    Each token becomes an account with that very token, its worker secret as a worker token, and its Replicate key as
    a provider that predictions overflow to. Taking a file again changes nothing.
    """
    entries = read_entries(file.read())
    if accounts is not None:
        _named(entries, accounts.read())
    results: list[dict[str, Any]] = []
    # Replicate takes its time over each key.
    size = 1 if check else _BATCH
    for start in range(0, len(entries), size):
        order = {"entries": entries[start : start + size], "check": check, "dry_run": dry_run}
        results += client.post("/v1/tokens/import", order)["results"]
    if as_json:
        for result in results:
            print_json(result)
    else:
        rows = [_row(number, result) for number, result in enumerate(results, 1)]
        print_table(("entry", "outcome", "account", "made", "notes"), rows, "no tokens in the file")
        if results:
            note(_sum(results, dry_run))
    if any(result["outcome"] == "refused" for result in results):
        raise click.exceptions.Exit(1)


def _row(number: int, result: Mapping[str, Any]) -> list[Any]:
    return [number, result["outcome"], result["account"], ", ".join(result["made"]), "; ".join(result["notes"])]


def _sum(results: Sequence[Mapping[str, Any]], dry_run: bool) -> str:
    counts = Counter(result["outcome"] for result in results)
    told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    return f"{told}; nothing was changed, this was a dry run" if dry_run else told
