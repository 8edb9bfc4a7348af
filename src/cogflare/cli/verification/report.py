"""What a verdict looks like: a table for people, an object for programs, and the events behind each violation."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cogflare.cli.verification.checker import Row, Verdict
from cogflare.cli.verification.history import Event, read
from cogflare.cli.verification.run import HISTORY, Outcome

COLUMNS = ("invariant", "tries", "result", "of these")

_LONGEST = 400


def cells(row: Row) -> tuple[str, int, str, str]:
    """Return a row of the table."""
    result = f"BROKEN: {row.violations}" if row.violations else "holds" if row.tries else "not tried"
    notes = sorted(row.notes.items(), key=lambda note: -note[1])
    return (row.name, row.tries, result, ", ".join(f"{count} {text}" for text, count in notes))


def told(outcome: Outcome) -> str:
    """Say in a line how a run went."""
    strikes = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.faults.items()))
    result = "all holds" if outcome.holds else f"{len(outcome.verdict.violations) + len(outcome.surprises)} BROKEN"
    return f"seed {outcome.seed}: {result}; {outcome.seconds:.0f} s, {sum(outcome.faults.values())} faults ({strikes})"


def complaints(outcome: Outcome) -> Iterator[str]:
    """Yield what is wrong, a line each."""
    for violation in outcome.verdict.violations:
        about = "" if violation.prediction is None else f" {violation.prediction}:"
        yield f"({violation.invariant}){about} {violation.text}"
    yield from outcome.surprises


def as_json(outcome: Outcome, folder: Path | None) -> dict[str, Any]:
    """Return what a program needs to know of a run; `folder` is where its history was kept."""
    return {
        "seed": outcome.seed,
        "holds": outcome.holds,
        "seconds": round(outcome.seconds, 1),
        "faults": outcome.faults,
        "invariants": outcome.verdict.rows,
        "violations": outcome.verdict.violations,
        "surprises": outcome.surprises,
        "folder": None if folder is None else str(folder),
    }


def faults_of(outcomes: Iterable[Outcome]) -> Counter[str]:
    """Add up the faults of several runs."""
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome.faults)
    return total


def write_evidence(outcome: Outcome, folder: Path) -> None:
    """Write what is wrong, and the events of each prediction that is named, to `violations.txt` beside the history."""
    lines = [*complaints(outcome), "", *_evidence(outcome.verdict, read([folder / HISTORY]))]
    (folder / "violations.txt").write_text("".join(f"{line}\n" for line in lines))


def _evidence(verdict: Verdict, events: Sequence[Event]) -> Iterator[str]:
    begin = events[0].at if events else 0
    for prediction in sorted({one.prediction for one in verdict.violations if one.prediction is not None}):
        yield f"--- {prediction}"
        mine = [event for event in events if getattr(event, "prediction", None) == prediction]
        tags = {tag for event in mine if (tag := getattr(event, "tag", None)) is not None}
        for event in events:
            if getattr(event, "prediction", None) == prediction or getattr(event, "tag", None) in tags:
                yield f"{(event.at - begin) / 1e6:9.3f} s  {msgspec.json.encode(event).decode()[:_LONGEST]}"
