"""Second runs: a model may run a prediction again only after something took the first run away."""

from itertools import pairwise

from cogflare.cli.verification.cases import TERMINAL, Case, Cases, Spans
from cogflare.cli.verification.history import Begun, Fault, Stored

_AWAY = frozenset({"stop", "cut", "reset", "slow", "half_open", "disk_full", "db_restart", "kill", "restart"})
"""Faults behind which an agent may be out of touch with the store: its own, its link's, a server's, the database's."""
_TAKEN = {
    ("worker", "kill"): "its agent was killed",
    ("worker", "restart"): "its agent was restarted",
    ("model", "kill"): "its model was killed",
}
"""Faults that end a run at once: what they hit, and how."""
INTERRUPTED = "Prediction interrupted"
LOSSES = (INTERRUPTED, "Prediction was lost", "Prediction could not be started")
"""How the errors begin with which a server gives a prediction up."""


class Excuses:
    """What may have taken a run away from an agent, by worker."""

    def __init__(self, cases: Cases, patience_us: int, slack_us: int) -> None:
        self._cases = cases
        self._patience_us = patience_us
        self._shared = [fault for fault in cases.faults if fault.target.startswith(("server", "database"))]
        self._own: dict[str, list[Fault]] = {}
        for fault in cases.faults:
            self._own.setdefault(fault.target, []).append(fault)
        self._slack_us = slack_us
        self._spans: dict[str, Spans] = {}

    def of(self, taken: Begun, start: int, end: int) -> str | None:
        """Say what may have taken this run away in that time, None if nothing did."""
        for pid, what in ((taken.agent_pid, "agent"), (taken.model_pid, "model")):
            if any(start <= at <= end for at in self._cases.deaths.get(pid, ())):
                return f"its {what} died"
        _, _, number = taken.worker.rpartition("-")
        for (what, kind), told in _TAKEN.items():
            faults = self._own.get(f"{what}-{number}", ())
            if any(fault.kind == kind and fault.at <= end and fault.until >= start for fault in faults):
                return told
        away = self._of_worker(number).longest_within(start, end)
        return None if away is None or away < self._patience_us else "its agent was away for longer than the grace"

    def _of_worker(self, number: str) -> Spans:
        found = self._spans.get(number)
        if found is None:
            mine = [fault for what in ("worker", "link") for fault in self._own.get(f"{what}-{number}", ())]
            spans = [(fault.at, fault.until) for fault in (*self._shared, *mine) if fault.kind in _AWAY]
            found = self._spans[number] = Spans(spans, self._slack_us)
        return found


def second_runs(case: Case, excuses: Excuses) -> tuple[list[str], list[str]]:
    """Return what excuses a prediction's further runs, and what is wrong with those that nothing excuses."""
    excused: list[str] = []
    wrong: list[str] = []
    for first, second in pairwise(sorted(case.begun, key=lambda begun: begun.at)):
        # The older attempt may be the one that began later.
        taken = min(first, second, key=lambda begun: begun.attempt)
        excuse = None if second.attempt == first.attempt else excuses.of(taken, first.at, second.at)
        if excuse is None and first.worker == second.worker and first.agent_pid != second.agent_pid:
            excuse = "its agent died"
        if excuse is not None:
            excused.append(excuse)
        else:
            wrong.append(_describe(first, second))
    return excused, wrong


def given_up(case: Case, excuses: Excuses) -> list[str]:
    """Return what is wrong with a prediction that failed because its last run was lost, though nothing took that."""
    if case.stored is None or not is_lost(case.stored) or not case.begun:
        return []
    last = max(case.begun, key=lambda begun: begun.attempt)
    ends = [seen.at for seen in case.seen if seen.status in TERMINAL]
    if excuses.of(last, last.at, min(ends, default=case.stored.at)) is not None:
        return []
    return [f"it was given up ({case.stored.error}), and nothing had taken attempt {last.attempt} from {last.worker}"]


def is_lost(stored: Stored) -> bool:
    """Whether the server gave a prediction up because its runs were lost."""
    return stored.status == "failed" and (stored.error or "").startswith(LOSSES)


def _describe(first: Begun, second: Begun) -> str:
    if first.attempt == second.attempt:
        return f"attempt {first.attempt} ran twice, on {first.worker} and on {second.worker}"
    return (
        f"attempt {second.attempt} began on {second.worker} {(second.at - first.at) / 1e6:.1f} s after attempt "
        f"{first.attempt} on {first.worker}, and nothing had taken either away"
    )
