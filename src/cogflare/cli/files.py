"""`cogflare files`: what is kept at the server for inputs."""

import mimetypes
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from cogflare.cli.client import Client, quoted, with_client
from cogflare.cli.downloads import save
from cogflare.cli.optionvalues import Whole
from cogflare.cli.output import age, as_json, note, print_fields, print_json, print_table, time_of
from cogflare.cli.tokens import Duration

_UNKNOWN: Final = "application/octet-stream"
_ADDRESS: Final = re.compile(r"https?://.+/files/([0-9a-z]{40})\Z")


@click.group()
def files() -> None:
    """Upload files for inputs, list, fetch and delete them; where an ID is asked for, the URL of a file does too."""


def send(client: Client, path: Path, kind: str | None = None, metadata: dict[str, str] | None = None) -> dict[str, Any]:
    """Upload a file and return what the server tells of it."""
    kind = kind or mimetypes.guess_type(path.name)[0] or _UNKNOWN
    try:
        with path.open("rb") as content:
            fields = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
            uploaded: dict[str, Any] = client.upload("/v1/files", (path.name, content, kind), fields)
            return uploaded
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from error


@files.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--type", "kind", metavar="TYPE", help="Media type such as image/png (default: by the name).")
@click.option("--metadata", "pairs", metavar="KEY=VALUE", multiple=True, help="Something to remember about the files.")
@as_json
@with_client
def upload(client: Client, paths: tuple[Path, ...], kind: str | None, pairs: tuple[str, ...], as_json: bool) -> None:
    """Upload files and print the URL of each: what an input takes in its place."""
    metadata = _metadata(pairs)
    for path in paths:
        uploaded = send(client, path, kind, metadata)
        if as_json:
            print_json(uploaded)
        else:
            note(f"{path}: {uploaded['size']} bytes, until {time_of(uploaded['expires_at'])}")
            click.echo(uploaded["urls"]["get"])


def _metadata(pairs: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key or "[" in key or "]" in key:
            raise click.UsageError(f"--metadata {pair}: write it as key=value")
        found[key] = value
    return found


@files.command("list")
@click.option("--limit", type=Whole(1), default=20, show_default=True, help="How many, newest first.")
@as_json
@with_client
def list_files(client: Client, limit: int, as_json: bool) -> None:
    """List files, newest first."""
    found = client.pages("/v1/files", limit)
    if as_json:
        for file in found:
            print_json(file)
        return
    plain = ("id", "name", "content_type", "size")
    rows = ((*(file[key] for key in plain), age(file["created_at"]), time_of(file["expires_at"])) for file in found)
    print_table(("id", "name", "type", "bytes", "created", "expires"), rows, "no files")


@files.command()
@click.argument("file_id", metavar="ID")
@as_json
@with_client
def show(client: Client, file_id: str, as_json: bool) -> None:
    """Show what the server knows of a file."""
    file = client.get(_path(file_id))
    if as_json:
        print_json(file)
        return
    shown = {key: file[key] for key in ("id", "name", "content_type", "size")}
    times = {key: time_of(file[key]) for key in ("created_at", "expires_at")}
    metadata = {f"metadata.{key}": value for key, value in file["metadata"].items()}
    url = {"url": file["urls"]["get"]}
    print_fields({**shown, **file["checksums"], **times, **url, **metadata}.items())


@files.command()
@click.argument("file_id", metavar="ID")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where it is saved (default: the current folder); nothing is overwritten.",
)
@as_json
@with_client
def download(client: Client, file_id: str, folder: Path, as_json: bool) -> None:
    """Save a file under its own name and print where."""
    url = _signed(client, file_id, 3600)["url"]
    # The server may know itself under another name than the one that was dialled.
    path = save(client.server + url[url.index("/v1/files/") :], folder)
    print_json({"id": _id(file_id), "path": str(path)}) if as_json else click.echo(path)


@files.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@with_client
def delete(client: Client, file_ids: tuple[str, ...], as_json: bool) -> None:
    """Delete files at once; predictions that are to read them still do."""
    for id in map(_id, file_ids):
        client.delete(_path(id))
        print_json({"id": id, "deleted": True}) if as_json else note(f"deleted {id}")


@files.command()
@click.argument("file_id", metavar="ID")
@click.option(
    "--expires-in",
    type=Duration(),
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="For how long it holds, such as 10m; up to 7d.",
)
@as_json
@with_client
def url(client: Client, file_id: str, expires_in: int, as_json: bool) -> None:
    """Print a URL that opens a file without a token; whoever has it may read the file."""
    signed = _signed(client, file_id, expires_in)
    print_json(signed) if as_json else click.echo(signed["url"])


def _signed(client: Client, file_id: str, expires_in_s: int) -> dict[str, Any]:
    signed: dict[str, Any] = client.post(f"{_path(file_id)}/download-url", {"expires_in_s": expires_in_s})
    return signed


def _path(file_id: str) -> str:
    return f"/v1/files/{quoted(_id(file_id))}"


def _id(given: str) -> str:
    """Return the id of a file: it may be named by its URL, which is what an upload prints."""
    found = _ADDRESS.match(given)
    return found[1] if found else given
