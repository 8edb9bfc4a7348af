"""The page about the worker protocol names all that the messages have."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from cogflare.protocol.messages import (
    LINK_PATH,
    MAX_DEPTH,
    MAX_FRAME,
    MAX_VALUE,
    PING,
    PONG,
    SUBPROTOCOL,
    AgentMessage,
    FinishStatus,
    Gpu,
    Held,
    Machine,
    Offer,
    Resume,
    ServerMessage,
    Verdict,
)

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "worker-protocol.md").read_text()
SHOWN = "\n".join(re.findall(r"^ {4}.*$|`[^`\n]+`", PAGE, re.MULTILINE))
WORDS = set(re.findall(r"\w+", SHOWN))
PARTS: list[type[msgspec.Struct]] = [Offer, Held, Resume, Gpu, Machine]
STRUCTS: list[type[msgspec.Struct]] = [*get_args(AgentMessage), *get_args(ServerMessage), *PARTS]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_a_message_and_its_fields_are_named(struct: type[msgspec.Struct]) -> None:
    tag = struct.__struct_config__.tag
    names = {field.encode_name for field in msgspec.structs.fields(struct)} | ({str(tag)} if tag else set())
    assert not names - WORDS


def test_words_and_limits_of_the_link_are_named() -> None:
    assert {*get_args(FinishStatus), *get_args(Verdict), PING, PONG} <= WORDS
    assert LINK_PATH in SHOWN
    assert SUBPROTOCOL in SHOWN
    assert f"{MAX_FRAME:,} bytes" in PAGE
    assert f"{MAX_VALUE:,} bytes" in PAGE
    assert f"{MAX_DEPTH} levels" in PAGE


def test_the_fields_that_the_page_describes_exist() -> None:
    tables = re.findall(r"^\| `(\w+)` \| \| \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    tags = {struct.__struct_config__.tag: struct for struct in STRUCTS}
    assert {tag for tag, _ in tables} == {"hello", "welcome", "finish"}
    for tag, rows in tables:
        described = {name for cell in re.findall(r"^\| ([^|]+) \|", rows, re.MULTILINE) for name in cell.split(", ")}
        fields = {f"`{field.encode_name}`" for field in msgspec.structs.fields(tags[tag])}
        assert described == fields - {"`prediction`", "`attempt`"}
