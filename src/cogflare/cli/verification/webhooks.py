"""What webhooks were told: every end at least once, as it is stored, under one id, and nothing new behind it.

Messages may come twice, and a network may lose any of them. Others than those of the end are sent once and never again,
and nobody promises that one of them arrives.
"""

from collections.abc import Iterable, Iterator, Sequence

from cogflare.cli.verification.cases import TERMINAL, Case
from cogflare.cli.verification.history import Asked, Fault, Told
from cogflare.cli.verification.reads import When, wrong_end_told

DEFAULT_EVENTS = ["output", "completed"]
"""What a webhook without a filter hears of."""
_STRUCK = frozenset({"kill", "stop"})
"""Faults of a server behind which something may come that it had begun to send before them."""


def wants_end(asked: Asked | None) -> bool:
    """Whether the webhook of a create, if it has one, is to hear of the end."""
    return asked is not None and asked.events is not None and "completed" in asked.events


def is_taken(told: Told) -> bool:
    """Whether the receiver has said that it has the message."""
    return told.code is not None and 200 <= told.code < 300


def ends_told(case: Case) -> list[Told]:
    """Return the messages of a prediction's end, as they came."""
    return [told for told in case.told if told.status in TERMINAL]


def unwanted(case: Case, asked: Asked | None, when: When) -> Iterator[str]:
    """Yield what should not have come, or not so: to another's address, unsigned, of events nobody asked for."""
    events = None if asked is None else asked.events
    for told in case.told:
        what = f"message {told.message or '(without an id)'}, at {when(told.begun_at)},"
        if told.is_moved:
            yield f"{what} followed a redirect"
        if not told.is_signed:
            yield f"{what} is not signed with the secret of the account"
        if told.tag != case.tag:
            yield f"{what} came to {told.receiver} at the address of {told.tag or 'nobody'}"
        elif events is None:
            yield f"{what} tells of a prediction without a webhook"
        elif told.status in TERMINAL and "completed" not in events:
            yield f"{what} tells of the end, and only {', '.join(events)} was asked for"
        elif told.status not in TERMINAL and events == ["completed"]:
            yield f"{what} tells of {told.status}, and only the end was asked for"


def wrong_ends(case: Case, asked: Asked | None) -> Iterator[str]:
    """Yield what is wrong with the messages of the end of a prediction that is stored."""
    ends = ends_told(case)
    ids = sorted({told.message for told in ends})
    if len(ids) > 1:
        yield f"its end was told under {len(ids)} ids: {', '.join(ids)}"
    others = {told.message for told in case.told if told.status not in TERMINAL}
    if shared := sorted(others & {*ids}):
        yield f"its end has the id of an earlier message: {', '.join(shared)}"
    if case.stored is not None and case.is_ended:
        yield from wrong_end_told(ends, case.stored)
        if wants_end(asked):
            yield from _never_taken(case, ends)


def late(case: Case, faults: Iterable[Fault], slack_us: int, when: When) -> tuple[list[str], int]:
    """Return what came first behind the end that the receiver had taken, and how many of such a fault excuses.

    A server that is killed or stands still in the middle of sending may be heard later, so `slack_us` after it.
    """
    taken = min((told.at for told in ends_told(case) if is_taken(told)), default=None)
    if taken is None:
        return [], 0
    first: dict[str, Told] = {}
    for told in sorted(case.told, key=lambda told: told.begun_at):
        first.setdefault(told.message, told)
    behind = [told for told in first.values() if told.status not in TERMINAL and told.begun_at > taken]
    if not behind:
        return [], 0
    struck = [fault for fault in faults if fault.kind in _STRUCK and fault.target.startswith("server")]
    wrong = [told for told in behind if not _is_excused(told, struck, slack_us)]
    texts = [f"{told.status} was told at {when(told.begun_at)}, after its end at {when(taken)}" for told in wrong]
    return texts, len(behind) - len(wrong)


def _is_excused(told: Told, struck: Sequence[Fault], slack_us: int) -> bool:
    return any(fault.at <= told.begun_at <= fault.until + slack_us for fault in struck)


def _never_taken(case: Case, ends: Sequence[Told]) -> Iterator[str]:
    """Yield where an end that was to be told was not, or where the store says otherwise."""
    was_taken = any(map(is_taken, ends))
    if not was_taken:
        codes = ", ".join(str(told.code or "nothing") for told in ends) or "it never came"
        yield f"its end was told to nobody who took it: {len(ends)} tries, answered {codes}"
    for delivery in case.deliveries:
        if delivery.state == "pending":
            yield f"message {delivery.message} is still pending after {delivery.tries} tries"
        elif (delivery.state == "delivered") != was_taken:
            yield f"message {delivery.message} is {delivery.state}, and was {'' if was_taken else 'not '}taken"


def counts(case: Case) -> dict[str, int]:
    """Count what came more than once, and what was refused."""
    ends = ends_told(case)
    taken = sum(map(is_taken, ends))
    earlier = [told.message for told in case.told if told.status not in TERMINAL]
    return {
        "ends told again": max(taken - 1, 0),
        "ends refused": len(ends) - taken,
        "earlier messages": len(earlier),
        "of these told again": len(earlier) - len({*earlier}),
    }
