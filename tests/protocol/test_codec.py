"""Frames: garbage in gives `ProtocolError` and nothing else; messages out fit, in order."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cogflare.protocol.codec import ProtocolError, agent_frames, checked, encode, frames, server_frames
from cogflare.protocol.messages import MAX_DEPTH, MAX_FRAME, Log, Metrics, Output, SlotFree

AGENT, SERVER = agent_frames(), server_frames()
DEEP = "[" * 5000 + "]" * 5000

GARBAGE = [
    "",
    "ping ",
    "null",
    "{}",
    "[",
    "[1]",
    "[null]",
    "[[]]",
    '[{"type":1}]',
    "[{}]",
    '[{"type":"log"},{"type":"cancel"}]',
    '{"type":"log"}',
    '[{"type":"finish","prediction":"p","attempt":1,"status":"won"},{"type":"cancel","prediction":7}]',
    '[{"type":"log","prediction":"p","attempt":1,"offset":0,"text":"\\ud800"}]',
    '[{"type":"log","prediction":"p","attempt":1,"offset":0,"text":"\ud800"}]',
    '[{"type":"output","prediction":"p","attempt":1,"index":0,"items":[NaN]}]',
    '[{"type":"output","prediction":"p","attempt":1,"index":0,"items":[1 2]}]',
    f'[{{"type":"output","prediction":"p","attempt":1,"index":0,"items":{DEEP}}}]',
    f'[{{"type":"unknown","x":{DEEP}}}]',
    DEEP,
    "[" * 5000,
    f'["{"x" * MAX_FRAME}"]',
    "\x00",
    "\ufeff[]",
]


@pytest.mark.parametrize("decoder", [AGENT, SERVER], ids=["agent", "server"])
@pytest.mark.parametrize("frame", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage(decoder: object, frame: str) -> None:
    with pytest.raises(ProtocolError):
        decoder.decode(frame)  # type: ignore[attr-defined]


def test_binary_frames_have_their_own_close_code() -> None:
    with pytest.raises(ProtocolError) as refused:
        AGENT.decode(b"[]")
    assert refused.value.code == 1003


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["prediction", "attempt", "index", "items", "text", "offset", "held", "offers", "values", "slots", "offer"]
TYPES = ["hello", "output", "log", "finish", "heartbeat", "capacity", "metrics", "welcome", "assign", "renewed", "x"]


@given(st.text() | st.binary())
def test_any_text_or_bytes(frame: str | bytes) -> None:
    for decoder in (AGENT, SERVER):
        with suppress(ProtocolError):
            decoder.decode(frame)


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES), max_size=3), st.sampled_from(TYPES))
def test_any_objects_that_look_like_messages(objects: list[dict[str, object]], kind: str) -> None:
    frame = json.dumps([{"type": kind, **members} for members in objects])
    for decoder in (AGENT, SERVER):
        with suppress(ProtocolError):
            decoder.decode(frame)


@given(st.lists(st.integers(1, 400), max_size=30), st.integers(100, 1000))
def test_frames_fit_and_keep_the_order(sizes: list[int], limit: int) -> None:
    sent = [Log("p", 1, number, "x" * min(size, limit - 80)) for number, size in enumerate(sizes)]
    cut = frames(sent, limit)
    assert all(len(frame.encode()) <= limit for frame in cut)
    assert [message for frame in cut for message in AGENT.decode(frame)] == sent


def test_a_frame_and_a_list_of_frames_say_the_same() -> None:
    messages = [SlotFree("p", 1), Log("p", 1, 0, "é")]
    assert frames(messages) == [encode(messages)]
    assert frames([]) == []


def test_a_message_that_fits_no_frame_is_said() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        frames([Log("p", 1, 0, "x" * MAX_FRAME)])


@given(VALUES.filter(lambda value: "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value)))
def test_what_is_checked_can_be_read(value: object) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    item = checked(Raw(text))
    [output] = AGENT.decode(encode([Output("p", 1, 0, [item])]))
    assert [bytes(got) for got in output.items] == [text]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nope",
        b"[1,",
        b"1 2",
        b"1,2",
        b"]",
        b'"\xff"',
        b'"\\ud800"',
        b"NaN",
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b"[" * 100_000,
    ],
)
def test_what_the_other_end_could_not_read_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON value|nested more"):
        checked(Raw(text))


def test_brackets_in_texts_and_beside_each_other_are_not_depth() -> None:
    for text in (b'"' + b"[" * 1000 + b'"', b'"\\"' + b"{" * 1000 + b'"', b"[" + b"[]," * 1000 + b"[]]"):
        assert bytes(checked(Raw(text))) == text


def test_the_deepest_value_passes_both_decoders() -> None:
    value = checked(Raw(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH))
    assert AGENT.decode(encode([Metrics("p", 1, {"m": value})]))
