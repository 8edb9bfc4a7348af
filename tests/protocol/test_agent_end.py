"""The agent's end: what it sends when, and what it keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import ProtocolError, agent_frames, encode
from cogflare.protocol.messages import (
    MAX_FRAME,
    MAX_REASON,
    MAX_VALUE,
    PING,
    PONG,
    Answer,
    Assign,
    Cancel,
    Capacity,
    Drain,
    Finish,
    Goodbye,
    Health,
    Heartbeat,
    Held,
    Log,
    Message,
    Metrics,
    Offer,
    Output,
    Probe,
    Reject,
    Renewed,
    Restarting,
    Resume,
    SlotFree,
    Started,
    Welcome,
)

KEY = ("p", 1)
ASSIGN = Assign("p", 1, 0, Raw(b"{}"))
_decoder = agent_frames()


def _end(slots: int = 2) -> AgentEnd:
    return AgentEnd("w1", "i1", "name", [Offer("acme", "model", "0" * 64, slots)], {})


def _welcome(*held: Resume) -> str:
    return encode([Welcome(1, 1, "n1", "test", 5, 15, list(held))])


def _link(end: AgentEnd, *held: Resume) -> list[Message]:
    end.connected()
    end.receive(_welcome(*held), 0.0)
    return _sent(end)


def _sent(end: AgentEnd) -> list[Message]:
    return [message for frame in end.take_frames() for message in _decoder.decode(frame)]


def _running(slots: int = 2) -> AgentEnd:
    end = _end(slots)
    _link(end)
    assert end.receive(encode([ASSIGN]), 0.0) == [ASSIGN]
    return end


def test_the_hello_tells_offers_and_what_is_held() -> None:
    end = _running()
    end.resize(0, 1)
    [frame] = end.connected()
    [hello] = _decoder.decode(frame)
    assert (hello.worker, hello.instance, hello.offers[0].slots) == ("w1", "i1", 1)
    assert hello.held == [Held("p", 1)]


def test_a_run_is_told_as_it_goes() -> None:
    end = _running()
    end.started(KEY, 1.0, 1.5)
    end.output(KEY, [Raw(b"1"), Raw(b"2")])
    end.log(KEY, "é")
    end.log(KEY, "x")
    end.metrics(KEY, {"m": Raw(b"1")})
    end.output(KEY, [Raw(b"3")])
    end.finish(Finish("p", 1, "succeeded", items=3), 2.0)
    assert _sent(end) == [
        Started("p", 1, 500),
        Output("p", 1, 0, [Raw(b"1"), Raw(b"2")]),
        Log("p", 1, 0, "é"),
        Log("p", 1, 2, "x"),
        Metrics("p", 1, {"m": Raw(b"1")}),
        Output("p", 1, 2, [Raw(b"3")]),
        Finish("p", 1, "succeeded", items=3, log_bytes=3),
    ]


def test_a_slot_that_is_free_at_once_travels_in_the_finish() -> None:
    end = _running()
    end.finish(Finish("p", 1, "succeeded"), 1.0)
    end.slot_free(KEY)
    assert _sent(end) == [Finish("p", 1, "succeeded", slot_free=True)]


def test_a_slot_that_is_free_later_is_told_by_itself() -> None:
    end = _running()
    end.finish(Finish("p", 1, "succeeded"), 1.0)
    assert _sent(end) == [Finish("p", 1, "succeeded")]
    end.slot_free(KEY)
    assert _sent(end) == [SlotFree("p", 1)]


@pytest.mark.parametrize("answer_first", [True, False])
def test_an_attempt_is_forgotten_when_it_is_answered_and_free(answer_first: bool) -> None:
    end = _running()
    end.finish(Finish("p", 1, "succeeded"), 1.0)
    answer = Answer("p", 1, "committed")
    for is_answer in (answer_first, not answer_first):
        assert end.busy() == 1
        if is_answer:
            end.receive(encode([answer]), 1.0)
        else:
            end.slot_free(KEY)
    assert end.busy() == 0


def test_a_new_link_gets_what_the_server_lacks() -> None:
    end = _running()
    end.disconnected()
    end.started(KEY, 1.0, 1.0)
    end.output(KEY, [Raw(b"1"), Raw(b"2"), Raw(b"3")])
    end.log(KEY, "héllo")
    assert _sent(end) == []
    assert _link(end, Resume("p", 1, True, outputs=2, log_bytes=3)) == [
        Started("p", 1),
        Output("p", 1, 2, [Raw(b"3")]),
        Log("p", 1, 3, "llo"),
    ]
    end.finish(Finish("p", 1, "succeeded", items=3, slot_free=True), 1.0)
    end.disconnected()
    assert _link(end, Resume("p", 1, True, outputs=3, log_bytes=6)) == [
        Started("p", 1),
        Finish("p", 1, "succeeded", items=3, log_bytes=6, slot_free=True),
    ]


def test_a_position_inside_a_character_goes_back_to_its_begin() -> None:
    end = _running()
    end.log(KEY, "a😀")
    assert _link(end, Resume("p", 1, True, log_bytes=4)) == [Log("p", 1, 1, "😀")]
    assert _link(end, Resume("p", 1, True, log_bytes=99)) == []


def test_an_unwanted_run_comes_out_as_a_cancel_and_only_frees_its_slot() -> None:
    end = _running()
    end.connected()
    assert end.receive(_welcome(Resume("p", 1, wanted=False)), 0.0)[1:] == [Cancel("p", 1)]
    end.finish(Finish("p", 1, "canceled"), 1.0)
    end.slot_free(KEY)
    assert _sent(end) == [SlotFree("p", 1)]
    assert end.busy() == 0


def test_an_unwanted_finish_comes_out_as_an_answer_and_gives_its_slot_back() -> None:
    end = _running()
    end.finish(Finish("p", 1, "succeeded", slot_free=True), 1.0)
    end.connected()
    assert end.receive(_welcome(Resume("p", 1, wanted=False)), 0.0)[1:] == [Answer("p", 1, "unknown")]
    assert _sent(end) == [SlotFree("p", 1)]
    assert end.busy() == 0


def test_a_held_attempt_that_the_welcome_passes_over_is_unwanted() -> None:
    end = _running()
    end.connected()
    assert end.receive(_welcome(), 0.0)[1:] == [Cancel("p", 1)]


def test_what_changed_between_hello_and_welcome_is_told() -> None:
    end = _running()
    end.finish(Finish("p", 1, "succeeded"), 1.0)
    end.receive(encode([Answer("p", 1, "committed")]), 1.0)
    end.connected()
    end.slot_free(KEY)
    end.resize(0, 0)
    end.receive(_welcome(Resume("p", 1, wanted=False)), 1.0)
    assert _sent(end) == [Capacity(0, 0), SlotFree("p", 1)]


def test_renewals_cancel_what_runs_and_nothing_else() -> None:
    end = _running()
    assert end.heartbeat() == encode([Heartbeat([KEY])])
    renewed = encode([Renewed([KEY, ("q", 7)])])
    assert end.receive(renewed, 0.0) == [Cancel("p", 1)]
    end.finish(Finish("p", 1, "canceled"), 1.0)
    assert end.receive(renewed, 0.0) == []


def test_an_idle_worker_says_ping_and_hears_pong() -> None:
    end = _end()
    assert end.heartbeat() == PING
    assert end.receive(PONG, 0.0) == []


@pytest.mark.parametrize(
    ("slots", "assign", "error"),
    [(0, Assign("q", 1, 0), "no free slot"), (1, Assign("q", 1, 7), "no offer 7")],
)
def test_an_assignment_without_room_is_handed_back(slots: int, assign: Assign, error: str) -> None:
    end = _end(slots)
    _link(end)
    assert end.receive(encode([assign]), 0.0) == []
    [finish] = _sent(end)
    assert isinstance(finish, Finish)
    assert (finish.status, finish.slot_free) == ("lost", True)
    assert error in (finish.error or "")
    end.receive(encode([Answer("q", 1, "committed")]), 0.0)
    assert end.busy() == 0


def test_slots_are_counted_by_the_agent_too() -> None:
    end = _running(slots=1)
    assert end.receive(encode([Assign("q", 1, 0)]), 0.0) == []
    end.finish(Finish("p", 1, "succeeded", slot_free=True), 1.0)
    assert end.receive(encode([Assign("r", 1, 0)]), 0.0) == [Assign("r", 1, 0)]


def test_a_repeated_assignment_is_dropped() -> None:
    end = _running()
    assert end.receive(encode([ASSIGN]), 0.0) == []


def test_a_finish_of_an_earlier_process_is_delivered_whole() -> None:
    end = _end()
    finish = Finish("p", 1, "succeeded", items=1, log_bytes=2)
    end.adopt(finish, [Raw(b"1")], b"hi", 1.0, 2.0)
    end.connected()
    end.receive(_welcome(Resume("p", 1, True)), 4.0)
    assert _sent(end) == [
        Started("p", 1, 3000),
        Output("p", 1, 0, [Raw(b"1")]),
        Log("p", 1, 0, "hi"),
        Finish("p", 1, "succeeded", items=1, log_bytes=2, ago_ms=2000, slot_free=True),
    ]


@pytest.mark.parametrize("message", [ASSIGN, Drain(), Answer("p", 1, "committed"), Renewed()])
def test_nothing_comes_before_the_welcome(message: Message) -> None:
    end = _end()
    end.connected()
    with pytest.raises(ProtocolError):
        end.receive(encode([message]), 0.0)


@pytest.mark.parametrize("message", [Reject("no"), Restarting()])
def test_but_for_what_ends_the_link(message: Message) -> None:
    end = _end()
    end.connected()
    assert end.receive(encode([message]), 0.0) == [message]


def test_a_second_welcome_is_an_error() -> None:
    end = _end()
    _link(end)
    with pytest.raises(ProtocolError):
        end.receive(_welcome(), 0.0)


def test_answers_and_cancels_of_strangers_are_dropped() -> None:
    end = _end()
    _link(end)
    assert end.receive(encode([Answer("x", 1, "unknown"), Cancel("x", 1)]), 0.0) == []


def test_goodbye() -> None:
    end = _end()
    _link(end)
    end.goodbye("drained")
    assert _sent(end) == [Goodbye("drained")]


@given(st.lists(st.sampled_from(["\x00", "é", "😀", '"', "a", "\ud800", "\n"]).map(lambda c: c * 40_000), max_size=4))
def test_any_log_fits_frames_and_joins_again(texts: list[str]) -> None:
    end = _running()
    for text in texts:
        end.log(KEY, text)
    whole = "".join(texts).encode(errors="replace")
    for frames in (end.take_frames(), _again(end)):
        assert all(len(frame.encode()) <= MAX_FRAME for frame in frames)
        logs = [message for frame in frames for message in _decoder.decode(frame)]
        got = b""
        for log in logs:
            assert log.offset == len(got)
            got += log.text.encode()
        assert got == whole


@given(st.lists(st.integers(1, MAX_VALUE - 2), max_size=6))
def test_items_of_any_size_fit_frames_and_keep_their_index(sizes: list[int]) -> None:
    end = _running()
    items = [Raw(b'"%b"' % (b"x" * size)) for size in sizes]
    end.output(KEY, items)
    for frames in (end.take_frames(), _again(end)):
        got: list[Raw] = []
        for frame in frames:
            assert len(frame) <= MAX_FRAME
            for output in _decoder.decode(frame):
                assert output.index == len(got)
                got += output.items
        assert got == items


def _again(end: AgentEnd) -> list[str]:
    end.connected()
    end.receive(_welcome(Resume("p", 1, True)), 0.0)
    return end.take_frames()


# --- health ----------------------------------------------------------------------------------------------------------


def test_a_probe_is_for_the_shell() -> None:
    end = _end()
    _link(end)
    assert end.receive(encode([Probe()]), 0.0) == [Probe()]


def test_what_is_wrong_with_the_model_is_told_on_each_link_until_it_is_well() -> None:
    end = _end()
    end.report("no GPU")
    assert _link(end) == [Health(False, "no GPU")]
    assert _link(end) == [Health(False, "no GPU")]
    end.disconnected()
    end.report(None)
    assert _link(end) == [Health(True)]
    assert _link(end) == [], "once"
    end.report(None)
    assert _sent(end) == [Health(True)]
    assert _link(end) == []


def test_a_long_story_is_cut() -> None:
    end = _end()
    _link(end)
    end.report("x" * 5_000)
    assert _sent(end) == [Health(False, "x" * MAX_REASON)]
