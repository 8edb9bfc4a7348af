"""What a checkup has found, and how it is shown: a line a finding, under it what to do."""

import sys
from collections.abc import Sequence
from typing import Final, Literal

import click
import msgspec

State = Literal["ok", "warning", "failed"]

_COLORS: Final = {"ok": "green", "warning": "yellow", "failed": "red"}


class Finding(msgspec.Struct, frozen=True):
    """What a check has found; `todo` is empty where there is nothing to do."""

    name: str
    state: State
    detail: str
    todo: str = ""


def show(finding: Finding, as_json: bool) -> None:
    """Print a finding: for people, or as one line of JSON."""
    if as_json:
        click.echo(msgspec.json.encode(finding))
        return
    click.echo(f"{finding.name:<12} {click.style(finding.state, _COLORS[finding.state])}  {_harmless(finding.detail)}")
    if finding.todo:
        click.echo(f"{'':<12} -> {_harmless(finding.todo)}")


def conclude(findings: Sequence[Finding], as_json: bool, praise: str) -> None:
    """Say how it is altogether, and end with 1 where something would fail; `praise` is for when nothing would."""
    failed = [finding.name for finding in findings if finding.state == "failed"]
    if not as_json:
        click.echo(f"would fail: {', '.join(failed)}" if failed else praise, err=True)
    if failed:
        sys.exit(1)


def _harmless(text: str) -> str:
    """Replace control characters, which could move the cursor: some of the text is what others have answered."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
