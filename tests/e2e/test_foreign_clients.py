"""Clients that others wrote, unmodified and each in its own environment, against a server that speaks https.

Over https a client makes objects of the files in an output, as it does with Replicate. The scripts are in
`tests/clients`; what follows says what they have to see.
"""

import json
import queue
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from support.certificates import make_certificate
from support.clients import ForeignClient, NodeClient, PythonClient
from support.processes import Server, Stage, version_of
from support.runners import MODELS
from support.scripted_worker import item

TEXT = f"me/text:{version_of('text')}"
TEXTURE = "  two\n\nlines: é\n"
WORDS = [item(index) for index in range(5)]
FRAMES = [b"\x89PNG" + bytes([number]) for number in range(3)]
SAID = "grüße\n"
SHOUTED = SAID.encode().upper()
# A stream is ahead of the status, which shows a start once it is stored.
UNDER_WAY = ("starting", "processing")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(shared_stage: Stage, cog_cache: Path, certificate: tuple[Path, Path]) -> Server:
    """A server with models of text and of files; its webhooks may reach this machine."""
    cert, key = map(str, certificate)
    trust = {"SSL_CERT_FILE": cert}
    server = shared_stage.server(scheme="https", tls_cert=cert, tls_key=key, outgoing_networks="127.0.0.0/8")
    workers = [
        *(shared_stage.scripted(server, kind, slots=20, environment=trust) for kind in ("single", "text")),
        *(
            shared_stage.cog(server, f"me/{it}", MODELS / it, cog_cache, environment=trust)
            for it in ("files", "frames")
        ),
    ]
    for worker in workers:
        worker.connected()
    return server


@pytest.fixture(scope="module")
def python1(server: Server, certificate: tuple[Path, Path]) -> ForeignClient:
    known = {"REPLICATE_BASE_URL": server.url, "REPLICATE_API_TOKEN": server.token()}
    trust = {"SSL_CERT_FILE": str(certificate[0]), "REPLICATE_POLL_INTERVAL": "0.02"}
    return PythonClient("replicate-python-1", known | trust).ready()


@pytest.fixture(scope="module")
def python2(server: Server, certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> ForeignClient:
    known = {"REPLICATE_BASE_URL": f"{server.url}/v1", "REPLICATE_API_TOKEN": server.token()}
    trust = {"SSL_CERT_FILE": str(certificate[0]), "REPLICATE_POLL_INTERVAL": "0.02"}
    # It downloads what a model puts out into the folder of temporary files.
    folder = {"TMPDIR": str(tmp_path_factory.mktemp("downloads"))}
    return PythonClient("replicate-python-2", known | trust | folder).ready()


@pytest.fixture(scope="module")
def javascript(server: Server, certificate: tuple[Path, Path]) -> ForeignClient:
    if not NodeClient.is_possible():
        pytest.skip("Node is not on this machine: the client for JavaScript was not tried")
    known = {"BASE_URL": f"{server.url}/v1", "REPLICATE_API_TOKEN": server.token()}
    return NodeClient("replicate-js", known | {"NODE_EXTRA_CA_CERTS": str(certificate[0])}).ready()


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file of a client."""
    path = tmp_path / "greeting.txt"
    path.write_text(SAID)
    return str(path)


def content(shown: dict[str, Any]) -> bytes:
    """Return what a client read from a file."""
    return b64decode(shown["content"])


def check_shouted(output: dict[str, Any], server: Server, text: Any) -> None:
    """Check what the model `files` makes of the file of a client: files alone, in a list, and text beside them."""
    assert output["single"]["url"].startswith(f"{server.url}/f/")
    assert content(output["single"]) == SHOUTED
    assert [content(file) for file in output["many"]] == [SHOUTED + bytes([number]) for number in range(2)]
    assert output["text"] == text


def check_told(events: list[list[Any]], words: list[str]) -> None:
    """Check the events of a stream of text: each word once, in order, an id on each, and the end."""
    assert [event[:2] for event in events] == [*(["output", word] for word in words), ["done", "{}"]]
    ids = [event[2] for event in events]
    assert all(ids)
    assert len(set(ids[:-1])) == len(words)


def check_frames(events: list[list[Any]], server: Server) -> None:
    """Check the events of a stream of files."""
    assert [event[0] for event in events] == ["output"] * len(FRAMES) + ["done"]
    files = [event[1] for event in events[:-1]]
    assert all(file["url"].startswith(f"{server.url}/f/") for file in files)
    assert [content(file) for file in files] == FRAMES


# --- Python, version 1 -----------------------------------------------------------------------------------------------


def test_python1_runs(python1: ForeignClient, server: Server) -> None:
    assert python1.play("run", model="me/text", input={"items": 5}) == WORDS
    assert [content(file) for file in python1.play("run", model="me/frames", input={"count": 3})] == FRAMES


@pytest.mark.parametrize("strategy", [None, "base64"])
def test_python1_sends_files_and_reads_files(
    python1: ForeignClient, server: Server, source: str, strategy: str | None
) -> None:
    output = python1.play("run_with_file", model="me/files", path=source, strategy=strategy)
    # Any text that begins like a data URL is a file to this client.
    check_shouted(output, server, {"url": "data:text/plain,not a file", "content": None})


def test_python1_streams_while_the_model_runs(python1: ForeignClient) -> None:
    shown = python1.play("stream", model="me/text", input={"items": 5, "seconds": 1})
    assert shown["status"] in UNDER_WAY
    check_told(shown["events"], WORDS)
    check_told(python1.play("async_stream", model=TEXT, input={"items": 5}), WORDS)


def test_python1_streams_files(python1: ForeignClient, server: Server) -> None:
    check_frames(python1.play("stream", model="me/frames", input={"count": 3})["events"], server)


def test_python1_streams_what_has_ended(python1: ForeignClient) -> None:
    check_told(python1.play("stream_of_ended", model="me/text", input={"items": 5}), WORDS)
    check_told(python1.play("stream_of_ended", model="me/single", input={"output": TEXTURE}), [TEXTURE])


def test_python1_is_told_how_a_stream_ends(python1: ForeignClient) -> None:
    failed = python1.play("stream_error", model="me/text", input={"items": 2, "fail": "out of cheese"})
    assert failed == {"before": WORDS[:2], "error": '{"detail":"out of cheese"}'}
    canceled = python1.play("stream_of_canceled", model="me/text", input={"items": 1000, "seconds": 60})
    assert (canceled["first"], canceled["status"]) == (WORDS[0], "canceled")
    assert canceled["last"][:2] == ["done", '{"reason":"canceled"}']


def test_python1_keeps_files(python1: ForeignClient, server: Server, source: str) -> None:
    shown = python1.play("files", path=source)
    made, named = shown["made"], shown["named"]
    assert (made["name"], made["content_type"], made["size"]) == ("greeting.txt", "text/plain", len(SAID.encode()))
    assert (named["name"], named["content_type"], named["metadata"]) == ("other.bin", "text/x-other", {})
    assert made["metadata"] == {"customer": "7"}
    assert made["etag"] == made["checksums"]["md5"] == named["etag"]
    assert made["urls"]["get"] == f"{server.url}/v1/files/{made['id']}"
    assert shown["got"] == made
    assert shown["listed"] == [named["id"], made["id"]]
    assert shown["deleted"] == [True, True]
    assert shown["gone"] == [404, "File not found"]


# --- Python, version 2 -----------------------------------------------------------------------------------------------


def test_python2_runs(python2: ForeignClient) -> None:
    assert python2.play("run", model="me/text", input={"items": 5}) == WORDS
    assert python2.play("run", model=TEXT, input={"items": 5}) == WORDS
    assert python2.play("run_error", model="me/single", input={"fail": "out of cheese"})["status"] == "failed"
    made = python2.play("create", model="me/single", input={"seconds": 0.1, "output": 7}, prefer="wait=5")
    assert (made["status"], made["output"]) == ("succeeded", 7)


@pytest.mark.parametrize("strategy", [None, "base64"])
def test_python2_sends_files_and_reads_files(
    python2: ForeignClient, server: Server, source: str, strategy: str | None
) -> None:
    output = python2.play("run_with_file", model="me/files", path=source, strategy=strategy)
    check_shouted(output, server, {"url": "data:text/plain,not a file", "content": None})


def test_python2_uses_models_as_functions(python2: ForeignClient, server: Server, source: str) -> None:
    assert python2.play("use", model="me/text", input={"items": 5}) == "".join(WORDS)
    frames = python2.play("use", model="me/frames", input={"count": 3})
    assert [content(file) for file in frames] == FRAMES
    output = python2.play("use_with_file", model="me/files", path=source)
    check_shouted(output, server, "data:text/plain,not a file")
    assert output["single"]["name"] == urlsplit(output["single"]["url"]).path.rpartition("/")[2]


def test_python2_iterates_while_the_model_runs(python2: ForeignClient) -> None:
    shown = python2.play("use_streaming", model="me/text", input={"items": 5, "seconds": 1.5})
    assert shown["pieces"] == WORDS
    assert shown["spread_s"] > 0.3


def test_python2_keeps_files(python2: ForeignClient, server: Server) -> None:
    options = {"filename": "größe.txt", "type": "text/x-own", "metadata": {"customer": "7"}}
    shown = python2.play("upload", content=SAID, **options)
    made = shown["made"]
    assert (made["name"], made["content_type"], made["metadata"]) == ("größe.txt", "text/x-own", {"customer": "7"})
    assert shown["got"] == made
    assert shown["listed"][0] == made["id"]
    signed = server.ask("POST", f"/v1/files/{made['id']}/download-url", json={"expires_in_s": 60})["url"]
    parameters = dict(parse_qsl(urlsplit(signed).query, strict_parsing=True))
    parameters["expiry"] = int(parameters["expiry"])
    assert python2.play("download", file_id=made["id"], **parameters) == SAID
    assert python2.play("delete", file=made["id"]) == "File not found"
    unnamed = python2.play("upload", content=SAID)["made"]
    assert (unnamed["name"], unnamed["content_type"]) == ("upload", "application/octet-stream")


# --- JavaScript ------------------------------------------------------------------------------------------------------


def test_javascript_runs(javascript: ForeignClient) -> None:
    shown = javascript.play("run", model="me/text", input={"items": 5})
    assert shown == {"output": WORDS, "statuses": ["succeeded", "succeeded"]}
    shown = javascript.play(
        "run", model=TEXT, input={"items": 5, "seconds": 0.3}, wait={"mode": "poll", "interval": 20}
    )
    assert (shown["output"], shown["statuses"][0], shown["statuses"][-1]) == (WORDS, "starting", "succeeded")
    shown = javascript.play("run_error", model="me/single", input={"fail": "out of cheese"})
    assert shown == {"error": "Prediction failed: out of cheese"}


@pytest.mark.parametrize("kind", ["buffer", "blob", "file"])
def test_javascript_sends_files_and_reads_files(
    javascript: ForeignClient, server: Server, source: str, kind: str
) -> None:
    output = javascript.play("run_with_file", model="me/files", path=source, kind=kind)
    check_shouted(output, server, {"url": "data:text/plain,not a file"})
    assert output["single"]["type"].startswith("text/plain")


def test_javascript_cancels(javascript: ForeignClient, server: Server) -> None:
    shown = javascript.play("run_aborted", model="me/text", input={"items": 1000, "seconds": 60})
    assert shown["status"] == "canceled"
    assert server.ended(shown["id"])["status"] == "canceled"


def test_javascript_streams_while_the_model_runs(javascript: ForeignClient) -> None:
    shown = javascript.play("stream", model="me/text", input={"items": 5, "seconds": 1})
    assert shown["status"] in UNDER_WAY
    check_told(shown["events"], WORDS)
    check_told(javascript.play("stream", model=TEXT, input={"items": 5})["events"], WORDS)
    check_told(javascript.play("stream", model="me/single", input={"output": TEXTURE})["events"], [TEXTURE])
    shown = javascript.play("stream_error", model="me/text", input={"items": 2, "fail": "out of cheese"})
    assert shown == {"error": '{"detail":"out of cheese"}'}


def test_javascript_streams_files(javascript: ForeignClient, server: Server) -> None:
    check_frames(javascript.play("stream", model="me/frames", input={"count": 3})["events"], server)


def test_javascript_keeps_files(javascript: ForeignClient, source: str) -> None:
    shown = javascript.play("files", path=source)
    made, unnamed = shown["made"], shown["unnamed"]
    assert (made["name"], made["content_type"], made["metadata"]) == ("greeting.txt", "text/plain", {"customer": "7"})
    assert unnamed["name"].startswith("buffer_")
    assert (unnamed["content_type"], unnamed["metadata"]) == ("application/octet-stream", {})
    assert shown["got"] == made
    assert shown["listed"] == [unnamed["id"], made["id"]]
    assert (shown["deleted"], shown["gone"]) == ([True, True], 404)


def test_javascript_turns_pages(javascript: ForeignClient, server: Server, shared_stage: Stage) -> None:
    made = [server.create("me/single", output=number) for number in range(120)]
    pages = javascript.play("pages")
    assert len(pages[0]) == 100
    assert len(pages) > 1
    seen = [id for page in pages for id in page]
    assert seen[: len(made)] == made[::-1]
    assert len(seen) == len(set(seen))


# --- webhooks --------------------------------------------------------------------------------------------------------


class _Receiver(BaseHTTPRequestHandler):
    deliveries: "queue.Queue[tuple[dict[str, str], str]]"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.send_response(204)
        self.end_headers()
        self.deliveries.put(({name.lower(): value for name, value in self.headers.items()}, body))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def delivery(python1: ForeignClient) -> Iterator[dict[str, Any]]:
    """The headers and the body of the last webhook of a prediction."""
    _Receiver.deliveries = queue.Queue()
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    hook = f"http://127.0.0.1:{receiver.server_port}/hook?x=1"
    created = python1.play("create", model="me/single", input={"output": SAID}, webhook=hook)
    status = ""
    while status != "succeeded":
        headers, body = _Receiver.deliveries.get(timeout=30)
        told = json.loads(body)
        status = told["status"]
        assert (told["id"], told["webhook"]) == (created, hook)
    assert told["output"] == SAID
    yield {"headers": headers, "body": body}
    receiver.shutdown()
    receiver.server_close()


def test_python1_accepts_our_webhooks(python1: ForeignClient, delivery: dict[str, Any]) -> None:
    shown = python1.play("webhook", **delivery)
    assert shown["key"].startswith("whsec_")
    assert shown["refused"] == "Webhook signature is invalid"


def test_python2_is_told_the_secret(python1: ForeignClient, python2: ForeignClient, delivery: dict[str, Any]) -> None:
    assert python2.play("secret") == python1.play("webhook", **delivery)["key"]


def test_javascript_accepts_our_webhooks(javascript: ForeignClient, delivery: dict[str, Any]) -> None:
    assert javascript.play("webhook", **delivery)["valid"] == [True, True, False]
