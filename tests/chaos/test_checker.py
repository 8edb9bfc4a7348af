"""The checker: it takes every sound history, and catches each kind of broken one, as what it is."""

import random
import time
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chaos import broken, broken_live
from chaos.broken import Kind
from chaos.histories import END, SHAPES, S, Shape, Tale, history, ordered
from cogflare.cli.verification.checker import INVARIANTS, Allowances, Verdict, check, total
from cogflare.cli.verification.history import (
    Accepted,
    Asked,
    Begun,
    Born,
    Died,
    Event,
    Fault,
    Seen,
    Stored,
    StoredAttempt,
    Told,
    Unanswered,
)

ALLOWANCES = Allowances(grace_s=5, reconnect_s=2, outage_s=5, sending_s=1)
KINDS = (*broken.KINDS, *broken_live.KINDS)


def tales_of(shapes: list[Shape], start: int = 0) -> list[Tale]:
    return [Tale(number, shape, start + number * S) for number, shape in enumerate(shapes)]


def broken_ones(verdict: Verdict) -> set[int]:
    return {violation.invariant for violation in verdict.violations}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sound_history_of_each_shape_passes(shape: Shape) -> None:
    verdict = check(history(tales_of([shape])), ALLOWANCES)
    assert verdict.violations == []
    assert verdict.holds


def test_a_sound_history_tells_how_often_each_invariant_was_tried() -> None:
    verdict = check(history(tales_of([*SHAPES])), ALLOWANCES)
    assert [row.name for row in verdict.rows] == [*INVARIANTS]
    assert {row.invariant: row.tries for row in verdict.rows} == {
        1: 11,
        2: 12 * 5 + 3,
        3: 3,
        4: 3,
        5: 15,
        6: 2,
        7: 1,
        8: 15,
        9: 1,
        10: 2,
        11: 1,
        12: 4,
    }
    notes = {row.invariant: row.notes for row in verdict.rows if row.notes}
    assert notes == {
        4: {"won": 2},
        6: {"whole": 1},
        8: {"again, its model was killed": 3},
        10: {"while a server was out": 1},
        11: {"ends told again": 1, "ends refused": 2, "earlier messages": 2},
        12: {"resumed": 4, "started over": 1},
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_broken_history_of_each_kind_is_caught_as_what_it_is(kind: Kind) -> None:
    for shape in kind.shapes:
        events = kind.broken(tales_of([shape]), random.Random(1))
        assert events is not None
        verdict = check(events, ALLOWANCES)
        assert broken_ones(verdict) == {kind.invariant}, verdict.violations


def test_every_invariant_is_broken_by_some_kind() -> None:
    assert {kind.invariant for kind in KINDS} == {*range(1, len(INVARIANTS) + 1)}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(SHAPES), max_size=12), st.integers(0, 100))
def test_sound_histories_pass(shapes: list[Shape], start: int) -> None:
    assert check(history(tales_of(shapes, start * S)), ALLOWANCES).violations == []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=12), st.sampled_from(KINDS), st.randoms())
def test_one_broken_prediction_among_sound_ones_is_caught(shapes: list[Shape], kind: Kind, dice: random.Random) -> None:
    events = kind.broken(tales_of(shapes), dice)
    assume(events is not None)
    assert events is not None
    assert broken_ones(check(events, ALLOWANCES)) == {kind.invariant}


# --- reads race ------------------------------------------------------------------------------------------------------


def test_only_reads_that_began_after_an_answer_come_after_it() -> None:
    tale = Tale(0, "plain", 0)
    early = tale.seen(9.5, 2, "starting")
    assert check(ordered([*history([tale]), early]), ALLOWANCES).holds
    late = tale.seen(9.5, 8.6, "processing", 4)
    assert broken_ones(check(ordered([*history([tale]), late]), ALLOWANCES)) == {2}


def test_an_answer_at_the_very_moment_of_a_question_orders_nothing() -> None:
    tale = Tale(0, "plain", 0)
    assert check(ordered([*history([tale]), tale.seen(9.5, 2.5, "starting")]), ALLOWANCES).holds


def test_output_may_be_shorter_again_but_not_another() -> None:
    tale = Tale(0, "plain", 0)
    assert check(ordered([*history([tale]), tale.seen(5.6, 5.5, "processing", 1)]), ALLOWANCES).holds


# --- second runs -----------------------------------------------------------------------------------------------------


def rescued_by(excuse: list[Event]) -> Verdict:
    """Check a second run, three seconds after the first, whose only excuse is this."""
    tale = Tale(0, "rescued", 0)
    kept = [event for event in history([tale]) if not (isinstance(event, Fault) and event.target == "model-1")]
    return check(ordered([*kept, *excuse]), ALLOWANCES)


def excuses() -> dict[str, Event]:
    tale = Tale(0, "rescued", 0)
    return {
        "its agent died": Died(2 * S, "agent", "worker-1", 100, "-9"),
        "its model died": Died(2 * S, "model", "model-1", 500, "-9"),
        "its agent was killed": tale.fault(2, 2, "kill", "worker"),
        "its agent was restarted": tale.fault(0.5, 3, "restart", "worker"),
        "its model was killed": tale.fault(2, 2, "kill", "model"),
        "its agent was away for longer than the grace": tale.fault(0.5, 4, "stop", "worker"),
        "its agent was away for longer than the grace (cut)": tale.fault(0.2, 3.5, "cut", "link"),
        "its agent was away for longer than the grace (half open)": tale.fault(0.2, 3.5, "half_open", "link"),
        "its agent was away for longer than the grace (database)": Fault(S // 2, 4 * S, "db_restart", "database", ""),
    }


@pytest.mark.parametrize("name", excuses())
def test_a_second_run_with_an_excuse_is_counted(name: str) -> None:
    verdict = rescued_by([excuses()[name]])
    assert verdict.violations == []
    assert verdict.rows[7].notes == {f"again, {name.partition(' (')[0]}": 1}


def test_faults_one_after_the_other_excuse_together() -> None:
    tale = Tale(0, "rescued", 0)
    assert rescued_by([tale.fault(1, 1, "reset", "link"), tale.fault(2, 4, "stop", "worker")]).holds


@pytest.mark.parametrize(
    "excuse",
    [
        Fault(2 * S, 2 * S, "kill", "worker-2", ""),
        Fault(S, S * 3, "stop", "worker-1", ""),
        Fault(2 * S, 2 * S, "reset", "link-1", ""),
        Fault(1, 4 * S, "clock_jump", "server-1", ""),
        Fault(1, 4 * S, "stop", "model-1", ""),
        Fault(5 * S, 5 * S, "kill", "worker-1", ""),
        Died(2 * S, "agent", "worker-2", 101, "-9"),
        Died(5 * S, "agent", "worker-1", 100, "-9"),
        Born(2 * S, "agent", "worker-1", 100),
    ],
    ids=str,
)
def test_what_did_not_touch_the_first_run_excuses_nothing(excuse: Event) -> None:
    assert broken_ones(rescued_by([excuse])) == {8}


def test_an_old_attempt_that_begins_late_is_excused_by_what_kept_it() -> None:
    """Its worker was stopped before it heard of the attempt, and begins when another has run it already."""
    tale = Tale(0, "plain", 0)
    late = Begun(4 * S, "worker-9", 99, 999, tale.id, 0, tale.tag)
    known = StoredAttempt(END, tale.id, 0, "worker-9", None, 1, "lost", True)
    stop = Fault(0, 3_900_000, "stop", "worker-9", "")
    assert broken_ones(check(ordered([*history([tale]), late, known]), ALLOWANCES)) == {8}
    assert check(ordered([*history([tale]), late, known, stop]), ALLOWANCES).holds


# --- creates that are sent again -------------------------------------------------------------------------------------


def sent_twice(again: str, *faults: Event, is_late: bool = False) -> Verdict:
    """Check a create whose first answer was lost, and that is stored twice because it is sent again.

    `is_late`: the one that nobody was told of was made after the other.
    """
    tale = Tale(0, "plain", 2 * S)
    first, ask = tale.events(), Asked(S, tale.client, tale.tag, "iterator", None, again)
    lost = Unanswered(S + 1, tale.client, tale.tag, "ReadError")
    twin = [
        msgspec.structs.replace(event, prediction="~twin" if is_late else "!twin")
        for event in first
        if isinstance(event, Stored | StoredAttempt)
    ]
    return check(ordered([ask, lost, *first, *twin, *faults]), ALLOWANCES)


def test_a_create_with_a_key_is_stored_once() -> None:
    verdict = sent_twice("key")
    assert broken_ones(verdict) == {6}
    assert (verdict.rows[5].tries, verdict.rows[5].notes) == (1, {"asked again and taken": 1})
    jump = Fault(2 * S, 2 * S + 1, "clock_jump", "server-1", "")
    assert broken_ones(sent_twice("key", jump)) == {6}


def test_a_create_with_a_count_is_stored_once_unless_the_clock_jumps_between() -> None:
    assert broken_ones(sent_twice("count")) == {6}
    assert broken_ones(sent_twice("count", Fault(0, END, "clock_jump", "server-1", ""))) == {6}
    assert sent_twice("count", Fault(2 * S, END, "clock_jump", "server-1", "")).holds


def test_what_arrives_behind_its_own_retry_is_known_by_its_key_only() -> None:
    assert sent_twice("count", is_late=True).holds
    assert broken_ones(sent_twice("key", is_late=True)) == {6}


# --- webhooks and streams --------------------------------------------------------------------------------------------


def behind_the_end(*faults: Fault, **fields: Any) -> Verdict:
    """Check a message before the end that begins to come 9.4 s after the start, behind a taken end."""
    tale = Tale(0, "hooked", 0)
    told = msgspec.structs.replace(tale.told(9.5, "msg_p0_3", "processing", 3), **fields)
    return check(ordered([*history([tale]), told, *faults]), ALLOWANCES)


@pytest.mark.parametrize("kind", ["kill", "stop"])
def test_what_a_struck_server_was_sending_may_come_behind_the_end(kind: str) -> None:
    verdict = behind_the_end(Fault(9 * S, 9 * S, kind, "server-1", ""))
    assert verdict.violations == []
    assert verdict.rows[10].notes["behind the end, under way when a server was struck"] == 1
    for other in (
        Fault(8 * S, 8 * S, kind, "server-1", ""),
        Fault(9 * S, 9 * S, kind, "worker-1", ""),
        Fault(10 * S, 10 * S, kind, "server-1", ""),
        Fault(9 * S, 9 * S, "restart", "server-1", ""),
        Fault(9 * S, 9 * S, "clock_jump", "server-1", ""),
    ):
        assert broken_ones(behind_the_end(other)) == {11}, other


def test_what_came_first_before_the_end_may_come_again_behind_it() -> None:
    verdict = behind_the_end(message="msg_p0_2")
    assert verdict.violations == []
    assert verdict.rows[10].notes["of these told again"] == 1


def test_what_had_begun_to_come_when_the_end_was_taken_is_not_behind_it() -> None:
    assert behind_the_end(begun_at=round(7.9 * S)).holds


def test_an_end_is_owed_to_the_webhook_of_a_create_that_was_not_answered_too() -> None:
    tale = Tale(0, "hooked", 0)
    events = [
        Unanswered(event.at, tale.client, tale.tag, "reset") if isinstance(event, Accepted) else event
        for event in history([tale])
    ]
    assert check(events, ALLOWANCES).holds
    assert broken_ones(check([event for event in events if not isinstance(event, Told)], ALLOWANCES)) == {11}


def test_of_what_did_not_succeed_a_stream_may_have_shown_more_than_was_kept() -> None:
    tale = Tale(0, "canceled", 0)
    for count in (0, 1, 2, 3, 4):
        shown = tale.streamed(9.5, count, 1, "canceled", with_logs=True)
        assert check(ordered([*history([tale]), shown]), ALLOWANCES).holds
    other = msgspec.structs.replace(shown, items=[tale.output()[1]])
    assert broken_ones(check(ordered([*history([tale]), other]), ALLOWANCES)) == {12}


# --- the whole -------------------------------------------------------------------------------------------------------


def test_verdicts_add_up() -> None:
    sound = check(history(tales_of([*SHAPES])), ALLOWANCES)
    spoilt = KINDS[0].broken(tales_of([*SHAPES]), random.Random(1))
    assert spoilt is not None
    both = total([sound, check(spoilt, ALLOWANCES)])
    assert (both.rows[0].tries, both.rows[0].violations) == (22, 1)
    assert both.rows[3].notes == {"won": 4}
    assert broken_ones(both) == {1}


def test_nothing_that_happened_is_no_violation() -> None:
    assert check([]).holds


def test_the_check_of_a_long_history_takes_no_square_of_its_length() -> None:
    """One prediction that is looked at a hundred thousand times, and five thousand predictions."""
    tale = Tale(0, "plain", 0)
    looks = [
        Seen(END + 2 * n, END + 2 * n - 1, tale.client, tale.id, "succeeded", "x", "", None) for n in range(100_000)
    ]
    events = [*ordered([*tale.events()][:-2]), *looks]
    many = history([Tale(number, SHAPES[number % len(SHAPES)], number * S) for number in range(5_000)])
    begin = time.monotonic()
    check(events, ALLOWANCES)
    check(many, ALLOWANCES)
    assert time.monotonic() - begin < 30
