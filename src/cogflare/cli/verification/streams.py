"""What readers of streams were shown: each item once, in order, of one attempt, and how it ended, as it is stored."""

from collections.abc import Iterator, Sequence

import msgspec

from cogflare.cli.verification.cases import Case
from cogflare.cli.verification.history import TAG, Asked, Stored, Streamed, named_files
from cogflare.cli.verification.model import Script, item, line

_REASONS = {"succeeded": "", "canceled": "canceled", "failed": "error", "aborted": "error"}
"""What `done` says of each end."""


def wrong_stream(shown: Streamed, case: Case, asked: Asked | None) -> Iterator[str]:
    """Yield what is wrong with what one reader was shown of a prediction."""
    who = f"the stream of {shown.client}"
    if shown.refusal is not None:
        yield f"{who} was refused: {shown.refusal}"
    elif shown.done is None:
        yield f"{who} did not end after {len(shown.items)} items"
    stored = case.stored
    if shown.refusal is not None or shown.done is None or stored is None or not case.is_ended:
        return
    attempts = {int(match[2]) for match in TAG.finditer(_text(shown)) if match[1] == case.tag}
    if len(attempts) > 1:
        yield f"{who} has data of attempts {', '.join(map(str, sorted(attempts)))}"
    elif asked is not None and asked.script is not None and attempts:
        yield from (f"{who} {text}" for text in _disorder(shown, asked, *attempts))
    yield from (f"{who} {text}" for text in _wrong_end(shown, stored, attempts))


def started_over(shown: Streamed, stored: Stored) -> bool:
    """Whether a reader was told that what it has seen is void, since its attempt was lost."""
    if shown.done != "error" or not (stored.strikes or stored.attempt > 1):
        return False
    return _REASONS.get(stored.status) != "error" or (stored.error or "") not in (shown.error or "")


def _disorder(shown: Streamed, asked: Asked, attempt: int) -> Iterator[str]:
    """Yield where items or log lines are missing, doubled or out of order, by what the model writes."""
    script = msgspec.convert(asked.script, Script)
    if asked.kind != "single":
        items = "".join(item(script.tag, attempt, index, script.pad) for index in range(script.items))
        if not items.startswith("".join(shown.items)):
            yield f"has other items than its model's, or not in their order: {len(shown.items)} of {script.items}"
    lines = "".join(line(script.tag, attempt, index, script.pad) for index in range(script.log))
    if shown.logs is not None and not lines.startswith(shown.logs):
        yield "has other log lines than its model's, or not in their order"


def _wrong_end(shown: Streamed, stored: Stored, attempts: set[int]) -> Iterator[str]:
    """Yield where a stream ends otherwise than its prediction did, or lacks what that has."""
    if started_over(shown, stored):
        if shown.error is None:
            yield "ended with reason error, and no error before"
        if stored.attempt in attempts and stored.status == "succeeded":
            yield f"broke off attempt {stored.attempt}, with which it ended"
        return
    if shown.done != _REASONS.get(stored.status):
        yield f"ended with reason {shown.done or '(none)'}, and it is {stored.status}"
        return
    if (shown.error is not None) != (shown.done == "error"):
        yield f"ended with reason {shown.done or '(none)'}, {'with' if shown.error else 'without'} an error before"
    elif stored.error is not None and stored.error not in (shown.error or ""):
        yield f"told another error than {stored.error}"
    yield from _differing(shown, stored)


def _differing(shown: Streamed, stored: Stored) -> Iterator[str]:
    """Yield where data is not the stored one; of what did not succeed, either may be ahead of the other."""
    pairs = [("output", "".join(named_files(shown.items)), "".join(_items(stored)))]
    if shown.logs is not None:
        pairs.append(("log", shown.logs, stored.logs))
    for what, seen, kept in pairs:
        if stored.status == "succeeded" and seen != kept:
            yield f"has {len(seen)} of the {len(kept)} characters of the {what}, or others"
        elif not (seen.startswith(kept) or kept.startswith(seen)):
            yield f"has another {what} than it ended with"


def _items(stored: Stored) -> Sequence[str]:
    if stored.output is None:
        return ()
    return stored.output if isinstance(stored.output, list) else [str(stored.output)]


def _text(shown: Streamed) -> str:
    return "".join((*shown.items, "\n", shown.logs or ""))
