"""The checker: a pure function from a history to a verdict on each of twelve invariants.

It trusts nothing that one side says alone: what clients were told is held against what the store has at the end, and
the store's word against what the models wrote. Each invariant also counts how often the history put it to the test.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

import msgspec

from cogflare.cli.verification import reads, streams, webhooks
from cogflare.cli.verification.cases import Case, Cases, Spans
from cogflare.cli.verification.history import BadInput, Event, Refused, Stored
from cogflare.cli.verification.runs import Excuses, given_up, is_lost, second_runs

INVARIANTS = (
    "every accepted prediction ends",
    "one terminal status, never back",
    "an old attempt changes nothing",
    "a cancel wins or loses once",
    "no slot leaks",
    "unanswered creates are whole or absent",
    "files named by an end exist",
    "no second run while the agent lived",
    "tenants never meet",
    "bad input is a 4xx and changes nothing",
    "a webhook hears of its end, once or again",
    "a stream shows each item once",
)

_UNSURE = frozenset({500, 502, 503, 504})
"""Answers to a create that leave open whether it happened."""
_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout"})
_EXCUSED = frozenset({502, 503, 504, 507})
"""What even bad input may be answered while a fault keeps a server from its store."""
_OUTAGES = frozenset({"kill", "stop", "cut", "reset", "slow", "half_open", "disk_full", "db_restart", "restart"})


class Allowances(msgspec.Struct, frozen=True):
    """How long an agent may be out of touch before its runs are given to another, and how fast it comes back.

    `sending_s`: how long a message may be under way after what struck its sender.
    """

    grace_s: float = 15.0
    reconnect_s: float = 5.0
    outage_s: float = 10.0
    sending_s: float = 2.5


class Violation(msgspec.Struct, frozen=True):
    """A promise that the history breaks: the number of the invariant, of which prediction, and how."""

    invariant: int
    prediction: str | None
    text: str


class Row(msgspec.Struct, frozen=True):
    """An invariant with the number of times that the history put it to the test; `notes` count what else is known."""

    invariant: int
    name: str
    tries: int
    violations: int
    notes: dict[str, int] = {}


class Verdict(msgspec.Struct, frozen=True):
    """What a history shows."""

    violations: list[Violation]
    rows: list[Row]

    @property
    def holds(self) -> bool:
        """Whether no invariant is broken."""
        return not self.violations


class Finding(msgspec.Struct):
    """What the check of one invariant has found so far."""

    tries: int = 0
    wrong: list[tuple[str | None, str]] = []
    notes: Counter[str] = msgspec.field(default_factory=Counter)

    def blame(self, prediction: str | None, texts: Iterable[str]) -> None:
        """Add what is wrong with a prediction."""
        self.wrong += [(prediction, text) for text in texts]


def check(events: Sequence[Event], allowances: Allowances | None = None) -> Verdict:
    """Check a history whose events come in the order of their moments."""
    cases = Cases(events)
    allowed = allowances or Allowances()
    findings = (
        _ends(cases),
        _statuses(cases),
        _attempts(cases),
        _cancels(cases),
        _slots(cases),
        _creates(cases),
        _files(cases),
        _runs(cases, allowed),
        _tenants(cases),
        _bad_inputs(cases, allowed),
        _webhooks(cases, allowed),
        _streams(cases),
    )
    numbered = list(enumerate(zip(INVARIANTS, findings, strict=True), 1))
    violations = [Violation(number, *wrong) for number, (_, finding) in numbered for wrong in finding.wrong]
    rows = [
        Row(number, name, finding.tries, len(finding.wrong), dict(+finding.notes))
        for number, (name, finding) in numbered
    ]
    return Verdict(violations, rows)


def total(verdicts: Iterable[Verdict]) -> Verdict:
    """Add up the verdicts on several histories."""
    tries: Counter[int] = Counter()
    notes: dict[int, Counter[str]] = {number: Counter() for number, _ in enumerate(INVARIANTS, 1)}
    violations: list[Violation] = []
    for verdict in verdicts:
        violations += verdict.violations
        for row in verdict.rows:
            tries[row.invariant] += row.tries
            notes[row.invariant].update(row.notes)
    broken = Counter(violation.invariant for violation in violations)
    rows = [
        Row(number, name, tries[number], broken[number], dict(notes[number]))
        for number, name in enumerate(INVARIANTS, 1)
    ]
    return Verdict(violations, rows)


def _ends(cases: Cases) -> Finding:
    finding = Finding()
    for case in cases.by_id.values():
        if case.accepted is None:
            continue
        finding.tries += 1
        missing = [f"a request for it was refused at {cases.when(one.at)}: {one.error}" for one in case.missing]
        finding.blame(case.prediction, missing)
        if case.stored is None:
            finding.blame(case.prediction, [f"accepted at {cases.when(case.accepted.at)}, and it is not stored"])
        elif not case.is_ended:
            finding.blame(case.prediction, [f"it never ended: {case.stored.phase}, {case.stored.status}"])
        else:
            asked = cases.asked.get(case.tag or "")
            finding.notes["given up after losses"] += is_lost(case.stored)
            finding.notes["with an input file"] += asked is not None and "source" in (asked.script or ())
            finding.blame(case.prediction, _wrong_end(cases, case.stored))
    return finding


def _wrong_end(cases: Cases, stored: Stored) -> Iterator[str]:
    """Yield what is wrong with what a prediction ended as, given what was asked for."""
    asked = cases.asked.get(stored.tag or "")
    if asked is not None:
        yield from reads.missing_data(stored, asked)
        yield from reads.strange_end(stored, asked)


def _statuses(cases: Cases) -> Finding:
    finding = Finding()
    for case in cases.by_id.values():
        finding.tries += len(case.seen)
        finding.blame(case.prediction, reads.never_back(case, cases.when))
    return finding


def _attempts(cases: Cases) -> Finding:
    finding = Finding()
    for case in cases.by_id.values():
        finding.tries += sum(case.stored is not None and begun.attempt < case.stored.attempt for begun in case.begun)
        finding.blame(case.prediction, chain(reads.stale_data(case, cases.when), reads.changed_data(case)))
        known = {attempt.attempt for attempt in case.attempts}
        unknown = [begun.attempt for begun in case.begun if case.stored is not None and begun.attempt not in known]
        finding.blame(case.prediction, (f"attempt {one} ran, and the store does not know it" for one in unknown))
        others = reads.foreign_tags(case)
        if others and not _is_of_others(cases, case, others):
            finding.blame(case.prediction, [f"it has data of {', '.join(sorted(others))}"])
    return finding


def _cancels(cases: Cases) -> Finding:
    finding = Finding()
    for case in cases.by_id.values():
        finding.tries += len(case.cancels)
        finding.notes["won"] += sum(told.status == "canceled" for told in case.cancels)
        finding.blame(case.prediction, reads.cancels(case, cases.when))
    for leftover in cases.leftovers:
        if leftover.kind == "canceled_run":
            finding.blame(None, [f"a canceled run goes on: {leftover.row}"])
    return finding


def _slots(cases: Cases) -> Finding:
    finding = Finding()
    for case in cases.by_id.values():
        for attempt in case.attempts:
            finding.tries += 1
            if attempt.ended is None or not attempt.freed:
                held = "is still live" if attempt.ended is None else "still holds its slot"
                finding.blame(case.prediction, [f"attempt {attempt.attempt} {held} on {attempt.holder}"])
    for leftover in cases.leftovers:
        if leftover.kind != "canceled_run":
            finding.blame(None, [f"{leftover.kind}: {leftover.row}"])
    return finding


def _creates(cases: Cases) -> Finding:
    finding = Finding()
    sent = {event.tag for event in cases.unanswered if event.reason not in _NEVER_SENT}
    unsure = sent | {event.tag for event in cases.refused if event.code in _UNSURE}
    accepted = {case.accepted.tag for case in cases.by_id.values() if case.accepted is not None}
    finding.tries = len(unsure)
    finding.notes["asked again and taken"] = len(unsure & accepted)
    for tag, stored in cases.by_tag.items():
        if len(stored) > 1 and _is_out_of_time(cases, tag, stored):
            finding.notes["twice: the clock jumped between the retries that were to be known by their time"] += 1
        elif len(stored) > 1 and _came_behind(cases, tag, stored):
            finding.notes["twice: what was sent first arrived behind its counted retry"] += 1
        elif len(stored) > 1:
            ids = ", ".join(one.prediction for one in stored)
            finding.blame(stored[0].prediction, [f"one create of {tag} is stored {len(stored)} times: {ids}"])
        if tag in unsure - accepted:
            finding.notes["whole"] += 1
            finding.blame(stored[0].prediction, _not_whole(cases, stored[0]))
    for case in cases.by_id.values():
        if case.accepted is None and case.seen and case.stored is None:
            finding.blame(case.prediction, [f"seen at {cases.when(case.seen[0].at)}, and the store does not know it"])
    return finding


def _is_out_of_time(cases: Cases, tag: str, stored: Iterable[Stored]) -> bool:
    """Whether a clock jumped between retries with a count: those are known for two minutes of the server's clock."""
    asked = cases.asked.get(tag)
    if asked is None or asked.again != "count":
        return False
    accepted = [cases.by_id[one.prediction].accepted for one in stored]
    last = max((told.at for told in accepted if told is not None), default=asked.at)
    jumps = [moment for fault in cases.faults if fault.kind == "clock_jump" for moment in (fault.at, fault.until)]
    return any(asked.at <= moment <= last for moment in jumps)


def _came_behind(cases: Cases, tag: str, stored: Iterable[Stored]) -> bool:
    """Whether the network held back the first sending of a create until after its retry, which carries a count only.

    Then nothing tells the late one from an equal create that is meant. Ids are in the order of their making.
    """
    asked = cases.asked.get(tag)
    if asked is None or asked.again != "count" or tag not in {event.tag for event in cases.unanswered}:
        return False
    told = {one.prediction for one in stored if cases.by_id[one.prediction].accepted is not None}
    return len(told) == 1 and all(one.prediction >= min(told) for one in stored)


def _not_whole(cases: Cases, stored: Stored) -> Iterator[str]:
    if cases.by_id[stored.prediction].is_ended:
        yield from _wrong_end(cases, stored)
    else:
        yield f"of an unanswered create, it never ended: {stored.phase}, {stored.status}"


def _files(cases: Cases) -> Finding:
    finding = Finding()
    for case in cases.by_id.values():
        for file in case.files:
            finding.tries += 1
            if file.state is None:
                finding.blame(case.prediction, [f"its file {file.file} is unknown"])
            elif file.state != "bound" or not file.is_there:
                where = "there" if file.is_there else "not there"
                finding.blame(case.prediction, [f"its file {file.file} is {file.state}, and {where}"])
            elif not file.sha256_matches and file.says in (None, case.stored and case.stored.attempt):
                finding.blame(case.prediction, [f"its file {file.file} ({file.size} bytes) is not what was written"])
    return finding


def _runs(cases: Cases, allowances: Allowances) -> Finding:
    finding = Finding()
    slack_us = round(allowances.reconnect_s * 1e6)
    excuses = Excuses(cases, round(allowances.grace_s * 1e6) - slack_us, slack_us)
    for case in cases.by_id.values():
        finding.tries += len(case.begun)
        excused, wrong = second_runs(case, excuses)
        finding.notes.update(f"again, {excuse}" for excuse in excused)
        finding.blame(case.prediction, [*wrong, *given_up(case, excuses)])
    return finding


def _tenants(cases: Cases) -> Finding:
    finding = Finding()
    for foreign in cases.foreign:
        if foreign.code in _EXCUSED:
            continue
        finding.tries += 1
        if foreign.code != 404:
            what = f"{foreign.client} was answered {foreign.code} to a {foreign.verb} at {cases.when(foreign.at)}"
            finding.blame(foreign.prediction, [what])
    for case in cases.by_id.values():
        account = case.stored.account if case.stored is not None else None
        for client in sorted({seen.client for seen in case.seen}):
            if account is not None and account_of(client) != account:
                finding.blame(case.prediction, [f"it is {account}'s, and {client} was shown it"])
        others = reads.foreign_tags(case)
        if others and _is_of_others(cases, case, others):
            finding.blame(case.prediction, [f"it has data of another account: {', '.join(sorted(others))}"])
    finding.blame(None, _mixed_workers(cases))
    return finding


def _mixed_workers(cases: Cases) -> Iterator[str]:
    """Yield the workers, each of which is one account's, that have run predictions of several."""
    served: dict[str, set[str]] = defaultdict(set)
    for case in cases.by_id.values():
        for begun in case.begun:
            if case.stored is not None:
                served[begun.worker].add(case.stored.account)
    for worker, accounts in served.items():
        if len(accounts) > 1:
            yield f"{worker} has run predictions of {' and '.join(sorted(accounts))}"


def account_of(client: str) -> str:
    """Return the account of a client, whose name is `account/number`."""
    return client.partition("/")[0]


def _is_of_others(cases: Cases, case: Case, tags: set[str]) -> bool:
    """Whether one of these tags belongs to another account than the prediction's."""
    account = case.stored.account if case.stored is not None else None
    return any(tag in cases.asked and account_of(cases.asked[tag].client) != account for tag in tags)


def _bad_inputs(cases: Cases, allowances: Allowances) -> Finding:
    finding = Finding()
    outage_us = round(allowances.outage_s * 1e6)
    outages = Spans(
        [(fault.at, fault.until + outage_us) for fault in cases.faults if fault.kind in _OUTAGES], slack_us=0
    )
    for told in cases.bad_inputs:
        if told.code in _EXCUSED and outages.longest_within(told.asked_at, told.at) is not None:
            finding.notes["while a server was out"] += 1
            continue
        finding.tries += 1
        finding.blame(None, _wrong_answer(cases, told))
    unanswered = {event.tag for event in cases.unanswered}
    for refused in cases.refused:
        finding.blame(None, _wrong_refusal(cases, refused, unanswered))
    return finding


def _wrong_answer(cases: Cases, told: BadInput) -> list[str]:
    where = f"{told.kind} was answered {told.code} at {cases.when(told.at)}"
    if told.tag in cases.by_tag:
        return [f"{where}, and was stored as {cases.by_tag[told.tag][0].prediction}"]
    if not 400 <= told.code < 500:
        return [where]
    return [] if told.is_problem else [f"{where}, without a problem document"]


def _wrong_refusal(cases: Cases, refused: Refused, unanswered: Collection[str]) -> list[str]:
    """A sound create may be refused while something is out of order; what was refused each time is not stored."""
    where = f"the create of {refused.tag} was answered {refused.code} {refused.title} at {cases.when(refused.at)}"
    if refused.code == 500:
        return [where]
    if refused.code not in _UNSURE and refused.tag in cases.by_tag and refused.tag not in unanswered:
        return [f"{where}, and was stored as {cases.by_tag[refused.tag][0].prediction}"]
    return []


def _webhooks(cases: Cases, allowances: Allowances) -> Finding:
    finding = Finding()
    slack_us = round(allowances.sending_s * 1e6)
    for case in cases.by_id.values():
        asked = cases.asked.get(case.tag or "")
        finding.tries += case.is_ended and webhooks.wants_end(asked)
        finding.notes.update(webhooks.counts(case))
        finding.blame(
            case.prediction, chain(webhooks.unwanted(case, asked, cases.when), webhooks.wrong_ends(case, asked))
        )
        wrong, excused = webhooks.late(case, cases.faults, slack_us, cases.when)
        finding.notes["behind the end, under way when a server was struck"] += excused
        finding.blame(case.prediction, wrong)
    return finding


def _streams(cases: Cases) -> Finding:
    finding = Finding()
    for case in cases.by_id.values():
        asked = cases.asked.get(case.tag or "")
        for shown in case.streamed:
            finding.tries += 1
            finding.notes["resumed"] += shown.breaks > 0
            finding.notes["started over"] += case.stored is not None and streams.started_over(shown, case.stored)
            finding.blame(case.prediction, streams.wrong_stream(shown, case, asked))
    return finding
