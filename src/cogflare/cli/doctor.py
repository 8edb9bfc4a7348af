"""`cogflare doctor`: whether a server with these settings would work, and what to do where it would not."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console

from cogflare.cli.checkup import Checkup, Finding
from cogflare.cli.output import as_json, note, print_json, visible
from cogflare.settings import Settings, SettingsError, load

_MARKS: Final = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


@click.command()
@click.option("--config", type=click.Path(dir_okay=False), help="The TOML file with the server's settings.")
@click.option("--data", help="Data folder of the server (default: ./cogflare-data).")
@click.option("--database-url", help="Where its database is, if not in the data folder.")
@as_json
def doctor(config: str | None, data: str | None, database_url: str | None, as_json: bool) -> None:
    """Check the settings of a server and all that it depends on, whether it runs or not.

    Run it as the user and with the variables (COGFLARE_*) of the server. Looks at the settings, the data folder, the
    database, the secret key, the storage (writes, reads, ranges, signed links, and removes what it wrote), the public
    URL and the clock. Ends with 1 where something would fail.
    """
    findings: list[Finding] = []
    try:
        settings = load(config, {"data": data, "database_url": database_url})
    except SettingsError as error:
        findings.append(Finding("settings", "failed", "they cannot be used", str(error)))
        _show(findings[-1], as_json)
    else:
        source = f"the file {config} and the variables" if config else "the variables"
        findings.append(Finding("settings", "ok", f"from {source} of this process"))
        _show(findings[-1], as_json)
        asyncio.run(_examine(settings, findings, as_json))
    _end(findings, as_json)


async def _examine(settings: Settings, findings: list[Finding], as_json: bool) -> None:
    async for finding in Checkup(settings).run():
        findings.append(finding)
        _show(finding, as_json)


def _show(finding: Finding, as_json: bool) -> None:
    if as_json:
        print_json(finding)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{finding.name:<12} ", end="", markup=False)
    console.print(_MARKS[finding.state], end="")
    console.print(f"  {visible(finding.detail)}", markup=False)
    if finding.todo:
        console.print(f"{'':<12} -> {visible(finding.todo)}", markup=False)


def _end(findings: Sequence[Finding], as_json: bool) -> None:
    failed = [finding.name for finding in findings if finding.state == "failed"]
    if failed:
        if not as_json:
            note(f"would fail: {', '.join(failed)}")
        sys.exit(1)
    if not as_json:
        note("a server with these settings works")
