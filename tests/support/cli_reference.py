"""Writes docs/reference/cli.md from the commands themselves: `make docs`; a test fails when the page is out of date."""

import re
from collections.abc import Iterator

import click

from cogflare.cli.main import cogflare

_INTRODUCTION = """# Command line

Made from `cogflare --help` by `make docs`; do not edit by hand.

Commands that talk to a server take its address from `--server` or `COGFLARE_SERVER` and a token from `--token` or
`COGFLARE_TOKEN`. Results go to standard output, everything else to standard error. On a terminal, lists are tables;
into a pipe they are tab-separated lines without headings; with `--json` they are the API's own objects, one a line.

An address without `http://` or `https://` is taken as http on this machine and as https elsewhere. `SSL_CERT_FILE=FILE`
names a certificate (PEM) to trust, such as one that you signed yourself.

Exit codes: 0 done, 1 failed (a prediction failed, or the server cannot be reached), 2 refused (wrong usage, or the
server said no), 3 the prediction was canceled, 130 interrupted.
"""


def render() -> str:
    """Return the page."""
    commands = sorted(cogflare.commands.items())
    sections = [section for name, command in commands for section in _sections(command, f"cogflare {name}", "##")]
    return _INTRODUCTION + "".join(f"\n{section}" for section in sections)


def _sections(command: click.Command, path: str, mark: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        yield f"{mark} {path}\n\n{_plain(command.help)}\n"
        for name, child in sorted(command.commands.items()):
            yield from _sections(child, f"{path} {name}", f"{mark}#")
        return
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    options = [
        parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    # Those of the client are in the introduction, not in every table.
    shown = [option for option in options if option.name not in ("server", "token") or "worker" in path.split()]
    rows = [f"| {_names(option)} | {_describe(option)} |" for option in shown]
    table = "\n".join(["", "| Option | |", "|---|---|", *rows, ""]) if rows else ""
    yield f"{mark} {path}\n\n    {usage}\n\n{_plain(command.help)}\n{table}"


def _names(option: click.Option) -> str:
    context = click.Context(click.Command("x"))
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    names = " / ".join([", ".join(sorted(option.opts, key=len)), *option.secondary_opts])
    return f"`{names}{value}`".replace("|", r"\|")


def _describe(option: click.Option) -> str:
    notes = ["required"] if option.required else []
    if option.envvar:
        notes.append(f"`{option.envvar}`")
    if option.show_default and option.default is not None and not option.is_flag:
        notes.append(f"default `{option.default}`")
    return (option.help or "") + (f" ({', '.join(notes)})" if notes else "")


def _plain(text: str | None) -> str:
    """Join the lines of each paragraph of a docstring."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


if __name__ == "__main__":
    print(render(), end="")
