"""What clients were told of one prediction, in order: statuses go forward, ends stay, data belongs to one attempt.

Reads race with each other. One comes after another only if it was asked after the other had been answered.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from cogflare.cli.verification.cases import TERMINAL, Case, rank
from cogflare.cli.verification.history import TAG, Asked, Moment, Seen, Stored, StoredAttempt, Told
from cogflare.cli.verification.model import UNREADABLE, Script, answer, item, line
from cogflare.cli.verification.runs import INTERRUPTED, LOSSES

When = Callable[[int], str]
M = TypeVar("M", bound=Moment)


def never_back(case: Case, when: When) -> Iterator[str]:
    """Yield what is wrong with the statuses that reads and creates told: back, two ends, another than the stored."""
    told = [(seen.at, seen.status) for seen in case.seen]
    if case.accepted is not None and case.accepted.status in TERMINAL:
        told.append((case.accepted.at, case.accepted.status))
    yield from _back(case.seen, told, when)
    yield from _second_ends(case)
    ended_by = [attempt.attempt for attempt in case.attempts if attempt.outcome in TERMINAL]
    if len(ended_by) > 1:
        yield f"attempts {', '.join(map(str, ended_by))} ended it, each for itself"
    if case.stored is not None and case.is_ended:
        yield from _other_end(case.stored, case.attempts)


def cancels(case: Case, when: When) -> Iterator[str]:
    """Yield what is wrong with the answers to cancels: not the end, not the stored one, or forgotten later."""
    if case.stored is not None and case.stored.status == "canceled" and not case.cancels_asked:
        yield "it is canceled, and nobody had asked for that"
    for told in case.cancels:
        if told.status not in TERMINAL:
            yield f"a cancel was answered {told.status} at {when(told.at)}"
        elif case.stored is not None and told.status != case.stored.status:
            yield f"a cancel was answered {told.status} at {when(told.at)}, and it is {case.stored.status}"
    yield from _back(case.seen, [(told.at, told.status) for told in case.cancels if told.status in TERMINAL], when)


def stale_data(case: Case, when: When) -> Iterator[str]:
    """Yield where data of an attempt shows up that was no longer the prediction's."""
    tag = case.tag
    if tag is None:
        return
    stored = case.stored
    if stored is not None:
        others = _named(stored, tag) - {stored.attempt}
        if others:
            yield f"it ended with attempt {stored.attempt}, and has data of attempt {_list(others)}"
        for file in case.files:
            if file.says is not None and file.says != stored.attempt:
                yield f"it ended with attempt {stored.attempt}, and file {file.file} is of attempt {file.says}"
    named = [(seen, _named(seen, tag)) for seen in case.seen]
    for told, attempts in (*named, *((told, _named(told, tag)) for told in case.told)):
        if len(attempts) > 1:
            yield f"data of attempts {_list(attempts)} was shown together at {when(told.at)}"
    shown = [(seen, max(attempts)) for seen, attempts in named if attempts]
    for earlier, later in _after(shown, [(seen.at, attempt) for seen, attempt in shown]):
        yield f"data of attempt {later[1]} was shown at {when(later[0].at)}, after data of attempt {earlier}"


def changed_data(case: Case) -> Iterator[str]:
    """Yield where an attempt's output or log was shown in two ways, none of which begins with the other."""
    tag = case.tag
    if tag is None:
        return
    outputs: dict[int, list[list[Any]]] = {}
    logs: dict[int, list[str]] = {}
    for seen in case.seen:
        attempts = _named(seen, tag)
        if len(attempts) == 1:
            [attempt] = attempts
            if isinstance(seen.output, list):
                outputs.setdefault(attempt, []).append(seen.output)
            logs.setdefault(attempt, []).append(seen.logs or "")
    for what, found in (("output", outputs), ("log", logs)):
        for attempt, versions in found.items():
            if any(later[: len(earlier)] != earlier for earlier, later in pairwise(sorted(versions, key=len))):
                yield f"the {what} of attempt {attempt} changed behind what had been shown"


def missing_data(stored: Stored, asked: Asked) -> Iterator[str]:
    """Yield what a prediction that succeeded lacks of what its model has shown; its file is checked by itself."""
    if stored.status != "succeeded" or asked.script is None:
        return
    script, attempt = msgspec.convert(asked.script, Script), stored.attempt
    if script.fail is not None:
        yield "it succeeded, and its model failed"
        return
    lines = "".join(line(script.tag, attempt, index, script.pad) for index in range(script.log))
    if stored.logs != lines:
        yield f"it succeeded with {len(stored.logs)} of {len(lines)} characters of its log"
    if asked.kind != "single":
        items = [item(script.tag, attempt, index, script.pad) for index in range(script.items)]
        if stored.output != items:
            yield f"it succeeded with an output of {len(stored.output or ())} items, not the {len(items)} of its model"
    elif script.file is None and stored.output != answer(script.tag, attempt, script.output) + "." * script.pad:
        yield "it succeeded with another output than its model's"


def strange_end(stored: Stored, asked: Asked) -> Iterator[str]:
    """Yield what is wrong with an end that is the word of neither its model nor its client."""
    error = stored.error or ""
    if stored.status == "aborted":
        yield "it was aborted, and had no deadline"
    elif stored.status == "failed" and not TAG.search(error) and not error.startswith(LOSSES):
        yield f"it failed with an error that is neither its model's nor a loss: {error}"
    elif stored.status == "failed" and UNREADABLE in error:
        yield f"its model was given an input file that is not there: {error}"
    elif stored.status == "failed" and error.startswith(INTERRUPTED) and asked.kind != "text":
        yield f"it was interrupted, and could have run again: its output is {asked.kind}"


def foreign_tags(case: Case) -> set[str]:
    """The tags of other predictions in what was shown or stored of this one."""
    texts = {_text(shown) for shown in (*case.seen, *case.told, *([case.stored] if case.stored else ()))}
    texts |= {"".join((*shown.items, shown.logs or "", shown.error or "")) for shown in case.streamed}
    found = {match[1] for text in texts for match in TAG.finditer(text)}
    return found - {case.tag} if case.tag is not None else set()


def wrong_end_told(ends: Iterable[Told], stored: Stored) -> Iterator[str]:
    """Yield where a message about the end tells another end than the stored one."""
    for told in ends:
        if told.status != stored.status:
            yield f"its end was told as {told.status}, and it is {stored.status}"
        elif _end(told) != _end(stored):
            yield f"its end, {told.status}, was told with another output, log or error than it has"


def _other_end(stored: Stored, attempts: Sequence[StoredAttempt]) -> Iterator[str]:
    """The last attempt tells the end; what waited after a loss may be canceled, and what was lost fails."""
    for last in attempts:
        fitting = (stored.status, None) if stored.status == "succeeded" else (stored.status, "lost", None)
        if last.attempt == stored.attempt and last.outcome not in fitting:
            yield f"it is {stored.status}, and its last attempt {last.outcome}"


def _second_ends(case: Case) -> Iterator[str]:
    ends = {_end(seen): seen.status for seen in case.seen if seen.status in TERMINAL}
    if case.stored is not None and ends:
        ends[_end(case.stored)] = case.stored.status
    statuses = {*ends.values()}
    if case.accepted is not None and case.accepted.status in TERMINAL:
        statuses |= {case.accepted.status, *([case.stored.status] if case.stored else ())}
    if len(statuses) > 1:
        yield f"it was {' and '.join(sorted(statuses))}"
    elif len(ends) > 1:
        yield f"it {statuses.pop()} with different outputs, logs or errors"


def _back(reads: Iterable[Seen], told: Sequence[tuple[int, str]], when: When) -> Iterator[str]:
    ranks = {rank(status): status for _, status in told}
    shown = [(seen, rank(seen.status)) for seen in reads]
    for earlier, (seen, _) in _after(shown, [(at, rank(status)) for at, status in told]):
        yield f"{seen.status} was told at {when(seen.at)}, after {ranks[earlier]}"


def _after(reads: Sequence[tuple[M, int]], told: Iterable[tuple[int, int]]) -> Iterator[tuple[int, tuple[M, int]]]:
    """Yield each read with a lower number than one that had been told before it was asked, and that number."""
    answers = sorted(told)
    position, highest = 0, -1
    for read in sorted(reads, key=lambda pair: _asked_at(pair[0])):
        while position < len(answers) and answers[position][0] < _asked_at(read[0]):
            highest = max(highest, answers[position][1])
            position += 1
        if read[1] < highest:
            yield highest, read


def _asked_at(read: Moment) -> int:
    return read.asked_at if isinstance(read, Seen) else read.at


def _named(shown: Seen | Stored | Told, tag: str) -> set[int]:
    """The attempts of this prediction whose data is shown."""
    return {int(match[2]) for match in TAG.finditer(_text(shown)) if match[1] == tag}


def _text(shown: Seen | Stored | Told) -> str:
    return f"{msgspec.json.encode(shown.output).decode()}\n{shown.logs or ''}\n{shown.error or ''}"


def _end(shown: Seen | Stored | Told) -> tuple[str, bytes, str, str | None]:
    return (shown.status, msgspec.json.encode(shown.output), shown.logs or "", shown.error)


def _list(attempts: Iterable[int]) -> str:
    return ", ".join(str(attempt) for attempt in sorted(attempts))
