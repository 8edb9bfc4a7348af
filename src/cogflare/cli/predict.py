"""`cogflare predict`: run a model once, see it work, keep what it made."""

import re
from pathlib import Path
from typing import Any, Final

import click

from cogflare.cli.client import ApiError, Client, NotFound, quoted, with_client
from cogflare.cli.files import send
from cogflare.cli.following import Feed, follow
from cogflare.cli.inputs import parse_inputs
from cogflare.cli.output import note, print_json
from cogflare.cli.routes import parsed
from cogflare.domain.policy import render

_REFERENCE: Final = re.compile(r"(?P<model>[^/:\s]+/[^/:\s]+)(?::(?P<version>[0-9a-f]{64}))?")
EXIT_CODES: Final = {"succeeded": 0, "failed": 1}
EXIT_CANCELED: Final = 3
EXIT_INTERRUPTED: Final = 130


@click.command()
@click.argument("reference", metavar="OWNER/NAME[:VERSION]")
@click.option("inputs", "-i", "--input", metavar="KEY=VALUE", multiple=True, help="An input; KEY=@FILE sends a file.")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where output files are saved (default: the current folder); nothing is overwritten.",
)
@click.option("--route", metavar="ROUTE", help="Where it may run: a provider, a preset such as workers, or a line.")
@click.option("--no-wait", is_flag=True, help="Print the prediction's id and leave it to run.")
@click.option("--json", "as_json", is_flag=True, help="Print the final prediction as JSON; save files only with -o.")
@with_client
def predict(
    client: Client,
    reference: str,
    inputs: tuple[str, ...],
    folder: Path | None,
    route: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Run a model: logs and progress appear while it works, its output at the end or as it comes.

    Ctrl-C cancels the prediction. Exit codes: 0 succeeded, 1 failed, 2 refused, 3 canceled, 130 interrupted.
    """
    model, version = _parse(reference)
    wish = {} if route is None else {"route": render(parsed(route))}
    schema = _schema(client, model, version)
    values = parse_inputs(inputs, schema, lambda path: str(send(client, path)["urls"]["get"]))
    prediction = _create(client, model, version, {"input": values, **wish})
    if no_wait:
        print_json(prediction) if as_json else click.echo(prediction["id"])
        return
    try:
        note(f"prediction {prediction['id']}")
        feed = Feed(schema or _schema(client, model, version), None if as_json and folder is None else folder or Path())
        prediction = follow(client, prediction, feed)
    except KeyboardInterrupt:
        _cancel(client, prediction["id"])
        raise SystemExit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(prediction)
    raise SystemExit(EXIT_CODES.get(prediction["status"], EXIT_CANCELED))


def _parse(reference: str) -> tuple[str, str | None]:
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise click.UsageError(f"{reference!r} is no model: write owner/name, or owner/name: and a version's 64 digits")
    return found["model"], found["version"]


def _schema(client: Client, model: str, version: str | None) -> Any:
    """Return the OpenAPI document of the version that will run; None where it has none, or is not known here yet."""
    name = quoted(*model.split("/"))
    try:
        if version is not None:
            return client.get(f"/v1/models/{name}/versions/{version}")["openapi_schema"]
        latest = client.get(f"/v1/models/{name}")["latest_version"]
    except NotFound:
        # A provider of its route may have it: the create finds out.
        return None
    return None if latest is None else latest["openapi_schema"]


def _create(client: Client, model: str, version: str | None, order: dict[str, Any]) -> dict[str, Any]:
    try:
        if version is not None:
            created: dict[str, Any] = client.post("/v1/predictions", {"version": f"{model}:{version}", **order})
        else:
            created = client.post(f"/v1/models/{quoted(*model.split('/'))}/predictions", order)
    except NotFound as error:
        if "no provider of its route" in error.detail:
            raise ApiError(error.detail) from error
        raise ApiError(
            f"the server has no {model}: `cogflare models list` shows what it has, `cogflare worker FOLDER --model"
            f" {model}` connects one, `cogflare routes set {model} PROVIDER` takes it from a provider"
        ) from error
    return created


def _cancel(client: Client, prediction_id: str) -> None:
    try:
        state = client.post(f"/v1/predictions/{prediction_id}/cancel")
    except ApiError as error:
        note(f"not canceled: {error.message}\ncancel it yourself: cogflare predictions cancel {prediction_id}")
    else:
        note(f"{state['status']}: {prediction_id}")
