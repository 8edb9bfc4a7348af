"""What a message may contain, told by what the decoders take and refuse."""

import msgspec
import pytest

from cogflare.protocol.codec import ProtocolError, agent_frames, encode, server_frames
from cogflare.protocol.messages import AgentMessage, Finish, Log, Offer, ServerMessage

KINDS = [*AgentMessage.__args__, *ServerMessage.__args__]
HASH = "0123456789abcdef" * 4


def _offer(**changes: object) -> bytes:
    return msgspec.json.encode({"owner": "acme", "name": "model", "version": HASH, "slots": 1, **changes})


def test_every_message_has_its_own_tag() -> None:
    tags = [kind.__struct_config__.tag for kind in KINDS]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": ""},
        {"owner": "a/b"},
        {"name": "-x"},
        {"name": "x\n"},
        {"name": "x" * 101},
        {"version": HASH[:-1]},
        {"version": HASH + "\n"},
        {"version": HASH.upper()},
        {"slots": -1},
        {"slots": 10_001},
        {"slots": True},
        {"slots": 1.5},
    ],
)
def test_an_offer_is_checked(changes: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(_offer(**changes), type=Offer)


@pytest.mark.parametrize("prediction", ["", "a b", "a\n", "a/b", "x" * 65, "é", "a\x00"])
def test_an_id_is_checked(prediction: str) -> None:
    frame = msgspec.json.encode([{"type": "slot_free", "prediction": prediction, "attempt": 1}]).decode()
    with pytest.raises(ProtocolError):
        agent_frames().decode(frame)


@pytest.mark.parametrize("count", ["-1", "9007199254740992", "1.5", "1e400", "99999999999999999999999", "true", '"1"'])
def test_counts_stay_whole_and_below_two_to_the_53(count: str) -> None:
    with pytest.raises(ProtocolError):
        agent_frames().decode(f'[{{"type":"slot_free","prediction":"p","attempt":{count}}}]')


def test_the_largest_count_passes() -> None:
    [message] = agent_frames().decode('[{"type":"slot_free","prediction":"p","attempt":9007199254740991}]')
    assert message.attempt == 2**53 - 1


def test_unknown_fields_and_messages_of_a_newer_end_are_ignored() -> None:
    frame = '[{"type":"dance"},{"type":"cancel","prediction":"p","attempt":1,"why":{"x":[1]}},{"type":"sing","n":1}]'
    assert [type(message).__name__ for message in server_frames().decode(frame)] == ["Cancel"]


def test_text_travels_whole() -> None:
    text = 'tab\t null\x00 quote" slash\\ line\u2028 astral😀'
    [log] = agent_frames().decode(encode([Log("p", 1, 0, text)]))
    assert log.text == text


def test_defaults_are_left_out() -> None:
    frame = encode([Finish("p", 1, "canceled")])
    assert frame == '[{"type":"finish","prediction":"p","attempt":1,"status":"canceled"}]'
