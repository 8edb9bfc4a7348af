"""`cogflare doctor`: whether a server with these settings would work, and what to do where it would not."""

import asyncio

import click

from cogflare.cli.checkup import Checkup
from cogflare.cli.findings import Finding, conclude, show
from cogflare.cli.output import as_json
from cogflare.settings import Settings, SettingsError, load


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
        show(findings[-1], as_json)
    else:
        source = f"the file {config} and the variables" if config else "the variables"
        findings.append(Finding("settings", "ok", f"from {source} of this process"))
        show(findings[-1], as_json)
        asyncio.run(_examine(settings, findings, as_json))
    conclude(findings, as_json, "a server with these settings works")


async def _examine(settings: Settings, findings: list[Finding], as_json: bool) -> None:
    async for finding in Checkup(settings).run():
        findings.append(finding)
        show(finding, as_json)
