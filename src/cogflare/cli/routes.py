"""`cogflare routes`: where predictions may run: your own workers, then providers, under conditions and budgets."""

import re
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec

from cogflare.cli.client import ApiError, Client, NotFound, quoted, with_client
from cogflare.cli.fleet import MODEL
from cogflare.cli.money import money
from cogflare.cli.output import age, as_json, note, print_json, print_table
from cogflare.cli.providers import KINDS
from cogflare.domain.money import dollars
from cogflare.domain.policy import BadPolicy, Hop, Policy, parse, parse_line, render

_ACCOUNT: Final = "/v1/route"
_EVERYTHING: Final = 100_000
_PLACE: Final = re.compile(r"\[(?P<index>[0-9]+)\](?P<keys>(?:\.[^.,]+)*)(?:, character (?P<character>[0-9]+))?")
_WIDEST: Final = 100


class BadRoute(click.ClickException):
    """The line is no route; shown with a mark under the fault."""

    exit_code = 2


@click.group()
def routes() -> None:
    """Say where predictions may run: own workers, providers, in which order, when, and for how much."""


@routes.command("set")
@click.argument("words", metavar="[OWNER/NAME] ROUTE", nargs=-1, required=True)
@click.option("--account-wide", is_flag=True, help="For all models that have no route of their own.")
@as_json
@with_client
def set_route(client: Client, words: tuple[str, ...], account_wide: bool, as_json: bool) -> None:
    """Set the route of a model, or of all that have none; it holds for what waits already, too.

    A route is one line of JSON or TOML, such as

        ["workers", {"replicate": {"when": "wait > 30s or no_workers", "budget_per_day": 5}}]

    or the name of a provider or preset: workers, classic.
    """
    if len(words) > 2 or (len(words) == 2 and account_wide):
        raise click.UsageError("write one model and one route; put the route into quotes ('…')")
    model = words[0] if len(words) == 2 else None
    policy = parsed(words[-1])
    found = client.put(_path(model), {"route": render(policy)})
    if as_json:
        print_json(found)
        return
    note(f"{model or 'all models without a route of their own'}:")
    _explain(policy)


@routes.command("list")
@as_json
@with_client
def list_routes(client: Client, as_json: bool) -> None:
    """List routes."""
    found = client.pages("/v1/routes", _EVERYTHING)
    if as_json:
        for route in found:
            print_json(route)
        return
    rows = ((r["model"] or "all others", _line(r["route"]), age(r["changed_at"])) for r in found)
    print_table(("model", "route", "changed"), rows, "no routes: everything waits for your own workers")


@routes.command()
@click.argument("model", metavar="[OWNER/NAME]", required=False)
@as_json
@with_client
def show(client: Client, model: str | None, as_json: bool) -> None:
    """Show what a model's predictions may do, in words."""
    try:
        found = client.get(_path(model))
    except NotFound:
        found = _fallback(client, model)
    if as_json:
        print_json(found)
        return
    if model and not found["model"]:
        note(f"{model} has no route of its own; this is the account's:")
    click.echo(_line(found["route"]))
    _explain(parse(found["route"]))


@routes.command()
@click.argument("route")
@as_json
@with_client
def check(client: Client, route: str, as_json: bool) -> None:
    """Say what each place of a route means, or where its fault is; nothing is changed."""
    policy = parsed(route)
    missing = _missing(client, policy)
    if as_json:
        hops = [{"name": hop.name, "meaning": _meaning(hop)} for hop in policy.hops]
        print_json({"route": render(policy), "hops": hops, "missing": missing})
    else:
        _explain(policy)
    for name in missing or ():
        kind = "" if name in KINDS else " --kind …"
        note(f"there is no provider {name} yet: `cogflare providers add {name}{kind}` adds it")
    if missing:
        raise SystemExit(BadRoute.exit_code)


@routes.command()
@click.argument("model", metavar="[OWNER/NAME]", required=False)
@click.option("--account-wide", is_flag=True, help="The route of all models that have none of their own.")
@with_client
def remove(client: Client, model: str | None, account_wide: bool) -> None:
    """Remove a route; what waits then waits as the account's route says, or for your own workers."""
    if (model is None) != account_wide:
        raise click.UsageError("name a model, or --account-wide")
    try:
        client.delete(_path(model))
    except NotFound as error:
        raise _no_route(model) from error
    note("removed")


def _fallback(client: Client, model: str | None) -> Any:
    """Return the account's route for a model that has none."""
    try:
        return client.get(_ACCOUNT)
    except NotFound as error:
        raise _no_route(model) from error


def _no_route(model: str | None) -> NotFound:
    whose = f"{model} has" if model else "the account has"
    text = f"{whose} no route, so predictions wait for your own workers: `cogflare routes list` shows what there is"
    return NotFound(text, 404)


def _path(model: str | None) -> str:
    if model is None:
        return _ACCOUNT
    if not MODEL.fullmatch(model):
        raise click.UsageError(f"{model!r} is no model: write owner/name")
    return f"/v1/models/{quoted(*model.split('/'))}/route"


def _missing(client: Client, policy: Policy) -> list[str] | None:
    """Return the providers that the account does not have; None where the server cannot be asked."""
    try:
        known = {provider["name"] for provider in client.pages("/v1/providers", _EVERYTHING)}
    except ApiError as error:
        note(f"whether its providers exist was not checked: {error.message}")
        return None
    return [hop.name for hop in policy.providers if hop.name not in known]


def _line(route: Any) -> str:
    return msgspec.json.encode(route).decode()


# --- in words --------------------------------------------------------------------------------------------------------


def _explain(policy: Policy) -> None:
    for number, hop in enumerate(policy.hops, 1):
        click.echo(f"{number}. {hop.name}: {_meaning(hop)}")


def _meaning(hop: Hop) -> str:
    if hop.is_workers:
        return "your own workers, as soon as one has a free slot"
    return "; ".join(_parts(hop))


def _parts(hop: Hop) -> Iterator[str]:
    yield "at any time" if hop.when is None else f"when {hop.when.text}"
    budgets = [f"{money(dollars(amount))} a {period}" for period, amount in hop.budgets.items()]
    if budgets:
        then = "then it waits for another place" if hop.over_budget == "wait" else "then new predictions are refused"
        yield f"at most {' and '.join(budgets)}, {then}"
    prices = [(hop.price_per_s, "second"), (hop.price_per_run, "run")]
    told = [f"{money(price)} a {unit}" for price, unit in prices if price is not None]
    if told:
        yield f"counted as {' and '.join(told)}"
    if hop.model or hop.version:
        yield f"called {hop.model or 'the same'}{f' in version {hop.version[:12]}…' if hop.version else ''} there"
    if hop.endpoint:
        yield f"at the endpoint {hop.endpoint}"
    if hop.shape:
        yield f"in the shape {hop.shape}"


# --- faults ----------------------------------------------------------------------------------------------------------


def parsed(line: str) -> Policy:
    """Read a route; raise `BadRoute` that shows where the fault is."""
    try:
        return parse_line(line)
    except BadPolicy as error:
        raise BadRoute(_marked(line.strip(), error)) from None


def _marked(line: str, error: BadPolicy) -> str:
    """Return the line with a mark under the fault, as far as it can be told, and what is wrong there."""
    at = place_in(line, error.place)
    told = f"{error.place}: {error.text}" if error.place != "policy" else error.text
    if at is None or not line.isprintable():
        return f"this is no route: {told}"
    start = max(0, at - _WIDEST // 2)
    shown = line[start : start + _WIDEST]
    return f"this is no route:\n\n  {shown}\n  {' ' * (at - start)}^\n{told}"


def place_in(line: str, place: str) -> int | None:
    """Return where in the text of a route a place such as `[1].replicate.when, character 7` is."""
    if place.startswith("character "):
        return min(int(place.removeprefix("character ")) - 1, len(line))
    found = _PLACE.fullmatch(place)
    if found is None:
        return None
    items = _items(line)
    index = int(found["index"])
    if index >= len(items):
        return None
    at = items[index]
    for key in filter(None, found["keys"].split(".")):
        after = re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])").search(line, at)
        if after is None:
            return at
        at = after.start()
    if found["character"] is None:
        return at
    # A condition stands in quotes behind its key.
    value = re.compile(r"""["']?\s*[:=]\s*["']""").search(line, at)
    return at if value is None else min(value.end() + int(found["character"]) - 1, len(line))


def _items(line: str) -> list[int]:
    """Return where the items of the outer list begin; text in quotes is passed over."""
    starts: list[int] = []
    depth, quote, is_due = 0, "", False
    for at, char in enumerate(line):
        if quote:
            quote = "" if char == quote and line[at - 1] != "\\" else quote
            continue
        if is_due and not char.isspace():
            starts.append(at)
            is_due = False
        if char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
            is_due = depth == 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 1:
            is_due = True
    return starts
