"""`cogflare budgets` and `cogflare costs`: what may be spent at providers, what was, and what own workers saved."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import click

from cogflare.cli.client import Client, NotFound, quoted, with_client
from cogflare.cli.fleet import MODEL
from cogflare.cli.output import as_json, counted, duration, note, print_fields, print_json, print_table
from cogflare.domain.money import MAX_DOLLARS, micros, shown

_BUDGETS: Final = "/v1/budgets"
_EVERYTHING: Final = 10_000
_BY: Final = ("day", "model", "provider", "token")
_UNKNOWN: Final = "unknown"


class Amount(click.ParamType[float]):
    """An amount of dollars: `5`, `0.25`, `$10`."""

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the text of the command line."""
        text = str(value).strip().removeprefix("$").replace(",", "")
        if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,6})?", text) or float(text) > MAX_DOLLARS:
            self.fail(f"{value!r} is no amount of dollars, such as 5 or 0.25", param, ctx)
        return float(text)


def _whose(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which budget is meant."""
    period = click.option("--per", "period", type=click.Choice(["day", "month"]), required=True, help="UTC.")
    token = click.option("--of-token", "token_id", metavar="ID", help="Of what one token asks for, by its id.")
    model = click.option("--model", metavar="OWNER/NAME", help="Of one model (default: of the whole account).")
    return model(token(period(command)))


@click.group()
def budgets() -> None:
    """See and set what may be spent at providers: by the account, a token or a model, a day or a month."""


@budgets.command("list")
@as_json
@with_client
def list_budgets(client: Client, as_json: bool) -> None:
    """List budgets: what is spent of each, what runs that go on have reserved, and what is left."""
    found = client.pages(_BUDGETS, _EVERYTHING)
    if as_json:
        for budget in found:
            print_json(budget)
        return
    amounts = ("amount", "spent", "reserved", "left")
    rows = ([_owner(b), b["period"], *(money(b[name]) for name in amounts)] for b in found)
    empty = "no budgets: `cogflare budgets set 5 --per day` sets one; routes may have budgets of their own"
    print_table(("of", "per", "budget", "spent", "reserved", "left"), rows, empty)


@budgets.command("set")
@click.argument("amount", type=Amount(), metavar="DOLLARS")
@_whose
@as_json
@with_client
def set_budget(
    client: Client, amount: float, model: str | None, token_id: str | None, period: str, as_json: bool
) -> None:
    """Set a budget; what was spent in this day or month before counts, too. 0 lets nothing be spent."""
    path = _path(model, token_id, period)
    try:
        budget = client.put(path, {"amount": amount})
    except NotFound as error:
        raise _missing_token(token_id) from error
    if as_json:
        print_json(budget)
        return
    note(f"{_owner(budget)}: {money(budget['amount'])} a {period}, of which {money(budget['left'])} is left now")


@budgets.command("remove")
@_whose
@with_client
def remove_budget(client: Client, model: str | None, token_id: str | None, period: str) -> None:
    """Remove a budget."""
    try:
        client.delete(_path(model, token_id, period))
    except NotFound as error:
        raise NotFound("there is no such budget: `cogflare budgets list` shows what there is", 404) from error
    note("removed")


@click.command()
@click.option("--since", default="30d", show_default=True, help="So long ago (7d, 12h), or 2026-01-31T00:00:00Z.")
@click.option("--until", help="The same; default: now.")
@click.option(
    "--by", default="provider,model", show_default=True, metavar="NAMES", help=f"Some of {', '.join(_BY)}, or total."
)
@as_json
@with_client
def costs(client: Client, since: str, until: str | None, by: str, as_json: bool) -> None:
    """Show what was spent at providers, and what runs on your own workers would have cost there."""
    names = [] if by == "total" else by.split(",")
    if unknown := [name for name in names if name not in _BY]:
        raise click.UsageError(f"--by takes some of {', '.join(_BY)} (or total), with commas; not {unknown[0]!r}")
    found = client.get("/v1/costs", since=since, until=until, by=",".join(names))
    if as_json:
        print_json(found)
        return
    shown_by = [name for name in _BY if name in names]
    if names:
        rows = ([*(_named(line, name) for name in shown_by), *_figures(line)] for line in found["results"])
        print_table([*shown_by, "runs", "ran", "cost"], rows, "nothing was run at providers in this time")
    print_fields(_summary(found))


def _named(line: Mapping[str, Any], by: str) -> str:
    """Return what a line is about; a token by its name too, since nobody knows ids by heart."""
    name = line.get("token_name") if by == "token" else None
    return f"{line[by]} ({name})" if name else str(line[by])


def _summary(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    total, saved = found["total"], found["saved"]
    yield "spent", _spent(total)
    if total["in_doubt"]:
        yield (
            "in doubt",
            f"{counted(total['in_doubt'], 'run')} may not have happened; what was reserved counts as spent",
        )
    if not saved["runs"]:
        yield "saved", "nothing: own workers have run nothing in this time"
    elif saved["amount"] is None:
        advice = "no price is known: give one with `cogflare providers set NAME --price-per-s DOLLARS`"
        yield "saved", f"{counted(saved['runs'], 'run')} on own workers; {advice}"
    else:
        unpriced = f", {saved['unpriced']} more have no price" if saved["unpriced"] else ""
        priced = counted(saved["runs"] - saved["unpriced"], "run")
        yield "saved", f"{money(saved['amount'])} by {priced} on own workers{unpriced}"


def _spent(total: Mapping[str, Any]) -> str:
    runs, unknown = counted(total["runs"], "run"), total["unknown"]
    if not unknown:
        return f"{money(total['cost'])} on {runs}"
    if unknown == total["runs"]:
        return f"{_UNKNOWN} on {runs}"
    known = counted(total["runs"] - unknown, "run")
    return f"{money(total['cost'])} on {known}, and what {unknown} more cost is {_UNKNOWN}"


def _figures(line: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return runs, their time, and their cost; costs that nobody knows are said, not taken for nothing."""
    known = money(line["cost"])
    cost = known
    if line["unknown"]:
        cost = f"{known} and {line['unknown']} {_UNKNOWN}" if line["unknown"] < line["runs"] else _UNKNOWN
    return str(line["runs"]), duration(line["run_s"]), cost


def money(amount: float | None) -> str:
    """Write an amount of dollars, None for one that nobody knows."""
    return _UNKNOWN if amount is None else shown(micros(amount))


def _path(model: str | None, token_id: str | None, period: str) -> str:
    if model is not None and token_id is not None:
        raise click.UsageError("a budget is of a model or of a token: give one of --model and --of-token")
    if model is not None:
        if not MODEL.fullmatch(model):
            raise click.UsageError(f"{model!r} is no model: write owner/name")
        return f"{_BUDGETS}/model/{quoted(*model.split('/'))}/{period}"
    return f"{_BUDGETS}/account/{period}" if token_id is None else f"{_BUDGETS}/token/{quoted(token_id)}/{period}"


def _owner(budget: Mapping[str, Any]) -> str:
    scope, name = budget["scope"], budget.get("name")
    named = f" ({name})" if name else ""
    return "the account" if scope == "account" else f"{scope} {budget['ref']}{named}"


def _missing_token(token_id: str | None) -> NotFound:
    return NotFound(f"your account has no token {token_id}: `cogflare tokens list` shows the ids (to an admin)", 404)
