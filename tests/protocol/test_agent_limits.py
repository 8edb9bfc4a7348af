"""What an agent keeps and sends of logs and outputs that pass the server's limits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cogflare.protocol import agent_end
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import agent_frames, encode
from cogflare.protocol.messages import MAX_LOG, Assign, Finish, Log, Message, Offer, Output, Resume, Welcome

KEY = ("p", 1)
_decoder = agent_frames()


def linked(**limits: int) -> AgentEnd:
    end = AgentEnd("w1", "i1", "name", [Offer("acme", "model", "0" * 64, 2)], {})
    welcome(end, **limits)
    end.receive(encode([Assign("p", 1, 0, Raw(b"{}"))]), 0.0)
    return end


def welcome(end: AgentEnd, *held: Resume, **limits: int) -> list[Any]:
    end.connected()
    end.receive(encode([Welcome(1, 1, "n1", "test", 5, 15, list(held), **limits)]), 0.0)
    return sent(end)


def sent(end: AgentEnd) -> list[Message]:
    return [message for frame in end.take_frames() for message in _decoder.decode(frame)]


@given(st.integers(0, 50), st.lists(st.text(max_size=10), max_size=20))
def test_a_log_is_kept_up_to_a_character_beyond_the_limit(limit: int, pieces: list[str]) -> None:
    end = linked(max_log_bytes=limit)
    for piece in pieces:
        end.log(KEY, piece)
    whole = "".join(pieces).encode(errors="replace")
    kept = bytes(end.kept[KEY].log)
    kept.decode()
    assert whole.startswith(kept)
    assert kept == whole if len(whole) <= limit else limit < len(kept) <= limit + 4
    told = b"".join(message.text.encode() for message in sent(end) if isinstance(message, Log))
    assert told == kept


def test_one_huge_piece_of_log_is_not_kept_whole() -> None:
    end = linked()
    end.log(KEY, "x" * 10_000_000)
    end.log(KEY, "y")
    assert len(end.kept[KEY].log) == MAX_LOG + 4
    assert end.kept[KEY].log.endswith(b"xx")


def test_items_are_kept_up_to_the_first_beyond_the_limit() -> None:
    end = linked(max_output_bytes=10)
    taken = [end.output(KEY, [Raw(b"1234")]) for _ in range(5)]
    assert taken == [1, 1, 1, 0, 0]
    assert end.output(KEY, [Raw(b"1")] * 3) == 0
    assert [len(message.items) for message in sent(end) if isinstance(message, Output)] == [1, 1, 1]


def test_the_number_of_items_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_end, "MAX_ITEMS", 5)
    end = linked()
    assert end.output(KEY, [Raw(b"1")] * 9) == 6


def test_a_server_that_has_more_than_we_do_is_sent_nothing() -> None:
    """Its log ends with a mark that we do not have."""
    end = linked(max_log_bytes=10)
    end.log(KEY, "0123456789abcdef")
    end.finish(Finish("p", 1, "succeeded"), 1.0)
    again = welcome(end, Resume("p", 1, wanted=True, log_bytes=40, outputs=3), max_log_bytes=10)
    assert [type(message) for message in again] == [Finish]


def test_frames_are_taken_a_little_at_a_time() -> None:
    end = linked()
    for number in range(10):
        end.log(KEY, f"{number}" * 90_000)
    assert not end.is_full
    end.output(KEY, [Raw(b'"%s"' % (b"x" * 500_000))])
    assert end.is_full
    end.finish(Finish("p", 1, "succeeded"), 1.0)
    turns = []
    while frames := end.take_frames(200_000):
        turns.append([message for frame in frames for message in _decoder.decode(frame)])
    assert [len(turn) for turn in turns] == [3, 3, 3, 2, 1]
    assert isinstance(turns[-1][0], Finish)
    assert not end.is_full
    assert not end.has_queued()


def test_what_waits_is_forgotten_with_the_link() -> None:
    end = linked()
    end.output(KEY, [Raw(b'"%s"' % (b"x" * 600_000))] * 2)
    assert end.is_full
    end.disconnected()
    assert not end.is_full


def test_what_a_resumed_run_said_before_the_first_welcome_is_kept_for_a_server_with_larger_limits() -> None:
    end = AgentEnd("w", "i", "n", [Offer("me", "m", "a" * 64, 1)], {})
    end.resume(KEY, 0)
    end.log(KEY, "x" * (2 * MAX_LOG))
    again = welcome(end, Resume(*KEY, wanted=True), max_log_bytes=4 * MAX_LOG)
    assert sum(len(message.text) for message in again if isinstance(message, Log)) == 2 * MAX_LOG
