"""What sockets of workers of 2022 do to a real server when they mean ill, or are broken: it stays well."""

import contextlib
import json
import re
import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from support.certificates import make_certificate
from support.processes import Server, Stage, until

MODEL = "old/model"


def address(server: Server, session: str, account: str = "me", model: str = MODEL) -> str:
    secret = server.token("worker", account)
    return f"{server.url.replace('http', 'ws')}/v1/models/{model}/websocket/{secret}?session_id={session}"


def dial(server: Server, session: str = "s", account: str = "me") -> ClientConnection:
    url = address(server, session, account)
    tls = ssl.create_default_context() if url.startswith("wss") else None
    if tls is not None:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return connect(url, ssl=tls, proxy=None, max_size=None, close_timeout=0.1)


def job(socket: ClientConnection) -> dict[str, Any]:
    got: dict[str, Any] = json.loads(socket.recv(timeout=20))
    return got


def memory(server: Server) -> int:
    """Return the most bytes that the server has ever had in memory."""
    assert server.process is not None
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


BEFORE: dict[str, bytes] = {
    "nothing": b"",
    "a message that takes room": struct.pack("!BBQ4x", 0x81, 0xFF, 70_000) + b"x" * 70_000,
    "a message in pieces": struct.pack("!BB4x", 0x01, 0x80) + struct.pack("!BB4x", 0x80, 0x80),
}
"""What may come at once with the head of the next message."""


def begin(plain: socket.socket, size: int, come: int, before: str = "nothing") -> None:
    """Send the head of a text message of `size` bytes and so many bytes of it, as far as they are taken."""
    plain.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        plain.sendall(BEFORE[before] + struct.pack("!BBQ4x", 0x81, 0xFF, size))
        for _ in range(come // 1_000_000):
            plain.sendall(b"x" * 1_000_000)


def pieces(plain: socket.socket, count: int, size: int) -> None:
    """Send pieces of a text message that does not end, as far as they are taken."""
    plain.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        for index in range(count):
            head = struct.pack("!BBQ", 0x00 if index else 0x01, 0xFF, size)
            plain.sendall(head + b"\0\0\0\0" + b"x" * size)


@pytest.mark.parametrize("how", [*BEFORE, "in pieces"])
def test_messages_that_never_end_take_no_more_than_their_room(stage: Stage, how: str) -> None:
    """A dozen of them from one token, 60 MB each: most are not read, and the result of another token finds room."""
    server = stage.server(max_result_bytes="70000000")
    before = memory(server)
    with contextlib.ExitStack() as stack:
        for number in range(12):
            held = stack.enter_context(dial(server, f"{number}-held", "eve"))
            if how == "in pieces":
                pieces(held.socket, 999, 60_000)
            else:
                begin(held.socket, 60_000_000, 59_000_000, how)
        assert memory(server) - before < 300_000_000
        with dial(server) as well:
            prediction = server.create(MODEL)
            assert job(well)["id"] == prediction
            well.send(json.dumps({"id": prediction, "status": "succeeded", "output": "x" * 65_000_000}))
            ended = server.ended(prediction, 90)
            assert (ended["status"], len(ended["output"] or "")) == ("succeeded", 65_000_000)


@pytest.mark.parametrize("is_secure", [False, True])
def test_large_results_of_many_workers_of_a_token_all_come(stage: Stage, is_secure: bool) -> None:
    """Those that find no room wait for the others; over TLS too."""
    tls: dict[str, Any] = {}
    if is_secure:
        cert, key = make_certificate(stage.folder)
        tls = {"scheme": "https", "tls_cert": str(cert), "tls_key": str(key)}
    server = stage.server(**tls)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(dial(server, f"{number}-large")) for number in range(4)]
        predictions = [server.create(MODEL) for _ in sockets]
        jobs = [job(socket)["id"] for socket in sockets]
        texts = [json.dumps({"id": id, "status": "failed", "logs": "x" * 50_000_000, "error": "well"}) for id in jobs]
        for socket_, text in zip(sockets, texts, strict=True):
            begin(socket_.socket, len(text), 0)
        with ThreadPoolExecutor(len(sockets)) as threads:
            # All at once: one that waits for its turn here would be late there.
            for socket_ in sockets:
                socket_.socket.settimeout(60)
            list(threads.map(lambda socket_, text: socket_.socket.sendall(text.encode()), sockets, texts))
        for prediction in predictions:
            ended = server.ended(prediction, 90)
            assert (ended["status"], ended["error"]) == ("failed", "well")


def request(server: Server, text: bytes, *more: bytes) -> bytes:
    """Send the head of a request, and after the first answer to each what comes next; return the last answer."""
    port = urlsplit(server.url).port or 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        plain.sendall(text)
        for part in more:
            assert plain.recv(1000).startswith(b"HTTP/1.1 100 ")
            plain.sendall(part)
        answer = b""
        while piece := plain.recv(10_000):
            answer += piece
        return answer


def test_uploads_in_chunks_and_by_permission(stage: Stage) -> None:
    server = stage.server()
    form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\nsome text\r\n--b--\r\n'
    head = f"PUT /v1/models/{MODEL}/files HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode()
    head += b"content-type: multipart/form-data; boundary=b\r\n"
    waits = head + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(form)
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    pieces = [form[index : index + 7] for index in range(0, len(form), 7)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    assert request(server, waits).startswith(b"HTTP/1.1 409 "), "nothing is asked for that nobody wants"
    with dial(server) as well:
        prediction = server.create(MODEL)
        assert job(well)["id"] == prediction
        well.send(json.dumps({"id": prediction, "status": "processing"}))
        answers = [request(server, waits, form), request(server, chunked + body)]
        urls = [json.loads(answer.rpartition(b"\r\n\r\n")[2])["url"] for answer in answers]
        well.send(json.dumps({"id": prediction, "status": "succeeded", "output": urls}))
        output = server.ended(prediction)["output"]
        assert [server.http.get(url).text for url in output] == ["some text", "some text"]


def test_sockets_that_are_half_closed_or_cut_in_a_frame(stage: Stage) -> None:
    server = stage.server()
    with contextlib.ExitStack() as stack:
        for number in range(20):
            broken = stack.enter_context(dial(server, f"{number}-broken"))
            begin(broken.socket, 1_000_000, 0)
            if number % 2:
                broken.socket.shutdown(socket.SHUT_WR)
            else:
                broken.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                broken.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: all(w["state"] != "online" for w in server.workers().values()), "end of all sockets")
    check(server)


def test_a_worker_that_never_reads_is_cut_off(stage: Stage) -> None:
    """It ends each prediction unread, so that the next one is sent to it."""
    server = stage.server()

    def is_gone() -> bool:
        return all(worker["state"] != "online" for worker in server.workers().values())

    def is_over(prediction: str) -> bool:
        return server.get(prediction)["status"] == "failed" or is_gone()

    with connect(address(server, "deaf"), proxy=None, max_queue=1, close_timeout=0.1) as deaf:
        for _ in range(60):
            prediction = server.create(MODEL, text="x" * 900_000)
            until(lambda prediction=prediction: server.attempts(prediction) or is_gone(), "attempt")  # type: ignore[misc]
            with contextlib.suppress(ConnectionClosed):
                deaf.send(json.dumps({"id": prediction, "status": "failed", "metrics": {"a": 1}}))
            until(lambda prediction=prediction: is_over(prediction), "end")  # type: ignore[misc]
            if is_gone():
                break
    assert is_gone()
    server.ask("POST", "/v1/predictions/cancel?all=true")
    check(server)


def check(server: Server) -> None:
    """Check that a worker that means well gets a prediction and ends it."""
    with dial(server, "well") as well:
        prediction = server.create(MODEL)
        assert job(well)["id"] == prediction
        well.send(json.dumps({"id": prediction, "status": "succeeded", "output": "well"}))
        assert server.ended(prediction)["output"] == "well"
