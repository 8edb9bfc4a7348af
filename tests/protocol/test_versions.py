"""Who of two ends is too old, and what a person is told to do about it."""

import pytest

from cogflare.protocol import versions
from cogflare.protocol.messages import OLDEST, PROTOCOL, Hello, Offer
from cogflare.protocol.versions import Speaks, advice, agreed

OFFER = Offer("acme", "m", "0" * 64, 1)


@pytest.mark.parametrize(
    ("worker", "server", "version"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 1), (1, 3), 1),
        ((1, 3), (1, 2), 2),
        ((2, 3), (1, 2), 2),
        ((2, 9), (3, 3), 3),
        ((1, 1), (2, 3), None),
        ((2, 3), (1, 1), None),
    ],
)
def test_the_newest_version_that_both_understand(
    worker: tuple[int, int], server: tuple[int, int], version: int | None
) -> None:
    assert agreed(Speaks(*worker, "1.0"), Speaks(*server, "2.0")) == version


def test_the_older_end_is_the_one_to_be_replaced() -> None:
    old, new = Speaks(1, 1, "0.1"), Speaks(2, 4, "0.9")
    text = advice(old, new)
    assert text.startswith(
        "this worker (cogflare 0.1, protocol 1) is too old for the server (cogflare 0.9, protocol 2 to 4)"
    )
    assert "join line" in text
    text = advice(new, old)
    assert text.startswith(
        "the server (cogflare 0.1, protocol 1) is too old for this worker (cogflare 0.9, protocol 2 to 4)"
    )
    assert "update the server" in text


def test_what_a_hello_says_of_its_worker() -> None:
    told = versions.of(Hello(3, "w", "i", "", [OFFER], agent={"version": "0.3.0"}, oldest=2))
    assert told == Speaks(2, 3, "0.3.0")
    assert versions.of(Hello(1, "w", "i", "", [OFFER])) == Speaks(1, 1, "")
    assert "unknown version" in str(versions.of(Hello(1, "w", "i", "", [OFFER])))
    hostile = versions.of(Hello(1, "w", "i", "", [OFFER], agent={"version": "\x1b[2J" + "9" * 1000}, oldest=99))
    assert (hostile.oldest, len(hostile.release)) == (1, 49)
    assert hostile.release.isprintable()


def test_this_end() -> None:
    assert versions.here("1.2") == Speaks(OLDEST, PROTOCOL, "1.2")
