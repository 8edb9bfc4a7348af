"""The server's end: who may say what when, and where slots go."""

import pytest
from msgspec import Raw

from cogflare.protocol.codec import ProtocolError, encode
from cogflare.protocol.messages import (
    PING,
    PROTOCOL,
    Assign,
    Capacity,
    Finish,
    Goodbye,
    Health,
    Heartbeat,
    Held,
    Hello,
    Log,
    Message,
    Metrics,
    Offer,
    Output,
    Resume,
    SlotFree,
    Started,
)
from cogflare.protocol.server_end import LinkState, ServerEnd

OFFER = Offer("acme", "model", "0" * 64, 2)


def _hello(*held: Held) -> Hello:
    return Hello(PROTOCOL, "w1", "i1", "", [OFFER], list(held))


def _open(*held: Held, resumes: tuple[Resume, ...] = ()) -> ServerEnd:
    end = ServerEnd()
    end.receive(encode([_hello(*held)]))
    end.welcome(resumes)
    return end


RUNNING = [Started("p", 1), Output("p", 1, 0, [Raw(b"1")]), Log("p", 1, 0, "x"), Metrics("p", 1, {"m": Raw(b"1")})]


def test_a_link_begins_with_a_hello() -> None:
    end = ServerEnd()
    with pytest.raises(ProtocolError):
        end.receive(encode([SlotFree("p", 1)]))
    assert end.free(0) == 0


def test_nothing_comes_between_hello_and_welcome() -> None:
    with pytest.raises(ProtocolError):
        ServerEnd().receive(encode([_hello(), Capacity(0, 1)]))


def test_a_link_says_hello_once() -> None:
    with pytest.raises(ProtocolError):
        _open().receive(encode([_hello()]))


def test_a_keep_alive_is_no_message() -> None:
    assert _open().receive(PING) == []


def test_held_attempts_take_slots_of_offers_that_were_made() -> None:
    end = _open(Held("p", 1), Held("q", 1, ended=True), Held("p", 1))
    assert end.free(0) == 0
    assert end.running() == [("p", 1), ("q", 1)]
    with pytest.raises(ProtocolError):
        ServerEnd().receive(encode([_hello(Held("p", 1, offer=1))]))


@pytest.mark.parametrize("message", RUNNING)
def test_only_what_runs_here_may_report(message: Message) -> None:
    end = _open(Held("p", 1))
    assert end.receive(encode([message])) == [message]
    end.stop(("p", 1))
    assert end.receive(encode([message])) == []
    assert _open().receive(encode([message])) == []


def test_a_finish_always_counts_and_ends_the_reports() -> None:
    finish = Finish("p", 1, "succeeded")
    assert _open().receive(encode([finish])) == [finish]
    end = _open(Held("p", 1))
    assert end.receive(encode([finish, RUNNING[0]])) == [finish]
    assert end.running() == []
    assert end.free(0) == 1


def test_an_attempt_that_ended_while_the_link_was_away_may_still_tell_what_it_did() -> None:
    end = _open(Held("p", 1, ended=True), resumes=(Resume("p", 1, wanted=True),))
    assert end.receive(encode([*RUNNING, Finish("p", 1, "succeeded", items=1)]))[:-1] == RUNNING
    assert end.running() == []


def test_a_slot_comes_back_once() -> None:
    end = _open()
    end.take(Assign("p", 1, 0))
    end.take(Assign("q", 1, 0))
    with pytest.raises(ValueError, match="no free slot"):
        end.take(Assign("r", 1, 0))
    assert end.receive(encode([SlotFree("p", 1), SlotFree("p", 1)])) == [SlotFree("p", 1)]
    assert end.free(0) == 1
    assert end.offer_of(("q", 1)) == 0
    assert end.offer_of(("p", 1)) is None


def test_capacity_changes_what_is_free_but_never_below_zero() -> None:
    end = _open()
    end.take(Assign("p", 1, 0))
    end.receive(encode([Capacity(0, 0)]))
    assert end.free(0) == 0
    end.receive(encode([Capacity(0, 5)]))
    assert end.free(0) == 4
    with pytest.raises(ProtocolError):
        end.receive(encode([Capacity(1, 1)]))


def test_an_unwanted_attempt_keeps_its_slot_until_it_is_free() -> None:
    end = _open(Held("p", 1), resumes=(Resume("p", 1, wanted=False),))
    assert end.running() == []
    assert end.free(0) == 1
    end.receive(encode([SlotFree("p", 1)]))
    assert end.free(0) == 2


def test_a_worker_may_say_at_any_time_how_its_model_is() -> None:
    end = _open()
    news = [Health(False, "no GPU"), Health(True)]
    assert end.receive(encode(news)) == news
    with pytest.raises(ProtocolError):
        ServerEnd().receive(encode([_hello(), Health(True)]))


def test_nothing_counts_after_a_goodbye() -> None:
    end = _open()
    assert end.receive(encode([Goodbye(), Heartbeat([])])) == [Goodbye()]
    assert end.state is LinkState.CLOSED
    assert end.free(0) == 0
    assert end.receive(encode([Finish("p", 1, "lost")])) == []
