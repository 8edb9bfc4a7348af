"""What a server's answer to a worker that asks beforehand means to the person who starts it."""

import httpx2
import pytest

from cogflare.agent.address import ServerAddress
from cogflare.agent.admission import Word, reading
from cogflare.protocol.messages import OLDEST, PROTOCOL

SERVER = ServerAddress("http://gateway.example")


def answer(status: int, document: object = None, text: str | None = None) -> httpx2.Response:
    if text is not None:
        return httpx2.Response(status, text=text)
    return httpx2.Response(status, json=document, headers={"content-type": "application/problem+json"})


def notice(oldest: int, newest: int) -> httpx2.Response:
    told = {
        "detail": "Workers connect here by WebSocket.",
        "server": "9.9",
        "protocol": {"oldest": oldest, "newest": newest},
    }
    return answer(426, told)


@pytest.mark.parametrize(
    "fine",
    [
        None,
        notice(OLDEST, PROTOCOL),
        notice(OLDEST, PROTOCOL + 5),
        answer(426, {"detail": "another day's server"}),
        answer(404, {"detail": "The requested resource could not be found.", "status": 404}),
        answer(503, {"detail": "later"}),
        answer(502, text="<html>bad gateway</html>"),
        answer(429, text="slow down"),
    ],
)
def test_nothing_stands_against_it(fine: httpx2.Response | None) -> None:
    assert reading(SERVER, fine) == Word()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (answer(401, {"detail": "You did not pass a valid authentication token"}), "ask whoever gave it to you"),
        (answer(401, text="who are you"), "cogflare tokens create"),
        (
            answer(403, {"detail": "This worker token is for ada/noop, not for ada/x."}),
            "is for ada/noop, not for ada/x",
        ),
        (answer(403, text="forbidden"), "does not let this token run workers"),
        (notice(PROTOCOL + 1, PROTOCOL + 2), "this worker (cogflare "),
        (notice(PROTOCOL + 1, PROTOCOL + 2), "is too old for the server (cogflare 9.9, protocol 2 to 3)"),
        (notice(OLDEST - 1, OLDEST - 1), "the server (cogflare 9.9, protocol 0) is too old for this worker"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(given: httpx2.Response, words: str) -> None:
    word = reading(SERVER, given)
    assert word.is_final
    assert words in word.text


@pytest.mark.parametrize(
    "strange",
    [
        answer(200, text="<html>welcome</html>"),
        answer(404, text="nothing here"),
        answer(200, "a string"),
        answer(200, {"protocol": "https"}),
        httpx2.Response(200, content=b"{", headers={"content-type": "application/json"}),
    ],
)
def test_what_is_no_cogflare_server_is_doubted_but_not_given_up(strange: httpx2.Response) -> None:
    word = reading(SERVER, strange)
    assert not word.is_final
    assert "http://gateway.example does not answer like a Cogflare server" in word.text
