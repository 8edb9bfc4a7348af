"""Files of workers of 2022 over HTTP: what is taken of whom, and who is served what."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from api.node import BASE, MAX_FILE_BYTES, Node
from api.oldsocket import MODEL, OldSocket, ended

pytestmark = pytest.mark.anyio
FILES = f"/v1/models/{MODEL}/files"


@pytest.fixture
async def socket(node: Node) -> AsyncIterator[OldSocket]:
    """The socket of a worker that has begun a prediction."""
    opened = await OldSocket(node, await node.token("ada", "worker")).open()
    await node.call("POST", f"/v1/models/{MODEL}/predictions", json={"input": {}})
    await opened.begin()
    yield opened
    await opened.drop()


async def put(node: Node, content: bytes = b"some text", name: str = "a.txt", path: str = FILES) -> httpx2.Response:
    return await node.http.put(path, files={"file": (name, content)})


async def uploaded(node: Node, **options: Any) -> str:
    answer = await put(node, **options)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["url"])


def prediction_of(node: Node) -> str:
    [prediction] = node.predictions.lives
    return prediction


async def end(node: Node, socket: OldSocket, output: Any) -> dict[str, Any]:
    """Let the prediction that runs end with this output, and return it."""
    prediction = prediction_of(node)
    await socket.say(prediction, "succeeded", output=output, metrics={"predict_time": 1})
    return await ended(node, prediction)


async def test_nothing_is_taken_while_nothing_runs(node: Node) -> None:
    assert (await put(node)).status_code == 409
    await node.running()
    assert (await put(node)).status_code == 409, "agents have tokens"


async def test_nothing_is_read_while_nothing_runs(node: Node) -> None:
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        yield b'--b\r\ncontent-disposition: form-data; name="other"\r\n\r\n'
        while pieces < 100:
            pieces += 1
            yield b"x" * 10_000

    form = {"content-type": "multipart/form-data; boundary=b"}
    assert (await node.http.put(FILES, content=endless(), headers=form)).status_code == 409
    assert pieces == 0


async def test_a_file_is_served_once_an_output_names_it(node: Node, socket: OldSocket) -> None:
    url = await uploaded(node)
    assert url.startswith(f"{BASE}{FILES}/")
    assert (await node.http.get(url)).status_code == 404
    shown = await end(node, socket, {"text": url})
    assert shown["output"]["text"] == f"{BASE}/f/{url.partition('/files/')[2]}"
    for served in (url, shown["output"]["text"]):
        answer = await node.http.get(served)
        assert (answer.text, answer.headers["content-type"]) == ("some text", "text/plain")
    part = await node.http.get(url, headers={"range": "bytes=0-3"})
    assert (part.status_code, part.text) == (206, "some")
    assert (await node.http.head(url)).headers["content-length"] == "9"


async def test_a_file_is_served_while_its_prediction_runs(node: Node, socket: OldSocket) -> None:
    url = await uploaded(node)
    await socket.say(prediction_of(node), output=[url])
    async with asyncio.timeout(5):
        while (await node.http.get(url)).status_code != 200:
            await asyncio.sleep(0.01)
    shown = await end(node, socket, [url])
    assert shown["output"] == [f"{BASE}/f/{url.partition('/files/')[2]}"]


async def test_a_url_of_another_host_names_the_file_too(node: Node, socket: OldSocket) -> None:
    """The worker may reach the server by another name than clients do."""
    url = await uploaded(node)
    shown = await end(node, socket, url.replace(BASE, "http://inside:8000"))
    assert shown["output"] == f"{BASE}/f/{url.partition('/files/')[2]}"


async def test_all_mounts_and_methods(node: Node, socket: OldSocket) -> None:
    for path in (f"/models/{MODEL}/files", f"/v1/v1/models/{MODEL}/files"):
        answer = await node.http.post(path, files={"file": ("b.png", b"\x89PNG", "image/png")})
        assert answer.status_code == 200
    assert (await node.http.get(FILES)).status_code == 405


async def test_what_names_no_file_of_ours_stays_as_it_is(node: Node, socket: OldSocket) -> None:
    key = "0" * 40
    output = [
        f"{BASE}{FILES}/{key}/a.txt",
        f"{BASE}/v1/models/ada/other/files/{key}/a.txt",
        "https://[/files/",
        "/files/",
    ]
    assert (await end(node, socket, output))["output"] == output


async def test_a_file_of_another_attempt_cannot_be_named(node: Node, socket: OldSocket) -> None:
    url = await uploaded(node)
    await end(node, socket, url)
    await node.call("POST", f"/v1/models/{MODEL}/predictions", json={"input": {}})
    await socket.begin()
    assert (await end(node, socket, url))["output"] == url


async def test_workers_of_two_accounts_have_their_own_files(node: Node, socket: OldSocket) -> None:
    """An upload does not say whose it is; what counts is which output names it."""
    mine = prediction_of(node)
    other = await OldSocket(node, await node.token("eve", "worker"), session="session-2").open()
    created = await node.call("POST", f"/v1/models/{MODEL}/predictions", "eve", json={"input": {}})
    assert (await other.next())["id"] == created.json()["id"]
    url = await uploaded(node)
    await other.say(created.json()["id"], "succeeded", output="nothing", metrics={"predict_time": 1})
    await socket.say(mine, "succeeded", output=url, metrics={"predict_time": 1})
    shown = await ended(node, mine)
    assert shown["output"].startswith(f"{BASE}/f/")
    assert (await node.http.get(shown["output"])).text == "some text"
    await other.drop()


async def test_so_many_files_and_no_more(node: Node, socket: OldSocket) -> None:
    for _ in range(3):
        await uploaded(node)
    assert (await put(node)).status_code == 413


async def test_so_many_bytes_and_no_more(node: Node, socket: OldSocket) -> None:
    assert (await put(node, b"x" * (MAX_FILE_BYTES + 1))).status_code == 413
    await uploaded(node, content=b"x" * MAX_FILE_BYTES)
    assert (await put(node, b"x" * 11)).status_code == 413
    assert len([file for file in node.folder.rglob("*") if file.is_file()]) == 1


async def put_from(node: Node, remote: str, size: int = 9) -> int:
    """Upload a file from another address and return the status of the answer."""
    transport = httpx2.ASGITransport(app=node.app, client=(remote, 1))
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as stranger:
        return (await stranger.put(FILES, files={"file": ("a.txt", b"x" * size)})).status_code


async def test_strangers_take_no_room_of_the_worker(node: Node, socket: OldSocket) -> None:
    strangers = [f"192.0.2.{number}" for number in range(1, 9)]
    taken = [[await put_from(node, stranger) for _ in range(4)] for stranger in strangers]
    assert taken[0] == [200, 200, 200, 413], "each has its own share"
    assert sum(answers.count(200) for answers in taken) == 6, "and all together no more than that twice"
    for _ in range(3):
        await uploaded(node)
    assert (await put(node)).status_code == 413


async def test_a_worker_whose_files_come_by_another_way_has_as_much_room(node: Node, socket: OldSocket) -> None:
    assert await put_from(node, "192.0.2.1", MAX_FILE_BYTES) == 200
    assert await put_from(node, "192.0.2.2", MAX_FILE_BYTES) == 200
    assert await put_from(node, "192.0.2.1", 100) == 413
    assert await put_from(node, "192.0.2.3", 100) == 413
    transport = httpx2.ASGITransport(app=node.app, client=("192.0.2.9", 1))
    await end(node, socket, "done")
    await node.call("POST", f"/v1/models/{MODEL}/predictions", json={"input": {}})
    await socket.begin()
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as other:
        url = (await other.put(FILES, files={"file": ("a.txt", b"some text")})).json()["url"]
    shown = await end(node, socket, url)
    assert (await node.http.get(shown["output"])).text == "some text"


async def test_uploads_of_strangers_at_once_share_their_room(node: Node, socket: OldSocket) -> None:
    statuses = await asyncio.gather(*(put_from(node, f"192.0.2.{n}", MAX_FILE_BYTES) for n in range(1, 5)))
    assert sorted(statuses) == [200, 200, 413, 413]
    assert (await put(node, b"x" * MAX_FILE_BYTES)).status_code == 200


async def test_uploads_that_end_one_after_the_other_share_the_room(node: Node, socket: OldSocket) -> None:
    """Each begins while there is room for it, and there is none any more when the second ends."""
    go = asyncio.Event()

    async def slowly(content: bytes) -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx'
        await go.wait()
        yield content + b"\r\n--b--\r\n"

    form = {"content-type": "multipart/form-data; boundary=b"}
    late = asyncio.create_task(node.http.put(FILES, content=slowly(b"x" * 100), headers=form))
    await asyncio.sleep(0.1)
    assert (await put(node, b"x" * (MAX_FILE_BYTES - 50))).status_code == 200
    go.set()
    assert (await late).status_code == 413
    assert len([file for file in node.folder.rglob("*") if file.is_file()]) == 1


async def test_an_upload_that_outlasts_its_run_is_not_kept(node: Node, socket: OldSocket) -> None:
    over = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx'
        await over.wait()
        yield b"\r\n--b--\r\n"

    form = {"content-type": "multipart/form-data; boundary=b"}
    late = asyncio.create_task(node.http.put(FILES, content=slowly(), headers=form))
    await asyncio.sleep(0.1)
    await end(node, socket, "done")
    over.set()
    assert (await late).status_code == 409
    assert not [file for file in node.folder.rglob("*") if file.is_file()]


async def test_what_nobody_names_does_not_pile_up_run_after_run(node: Node, socket: OldSocket) -> None:
    """Uploads take no token, and each run has room for some: until they are swept, that of a few runs is all."""
    taken = 0
    for _ in range(6):
        taken += (await put(node, b"x" * MAX_FILE_BYTES)).status_code == 200
        await end(node, socket, "done")
        await node.call("POST", f"/v1/models/{MODEL}/predictions", json={"input": {}})
        await socket.begin()
    assert taken == 4
    assert (await put(node, b"x" * MAX_FILE_BYTES)).status_code == 413


async def test_a_form_that_is_none(node: Node, socket: OldSocket) -> None:
    assert (await node.http.put(FILES, content=b"text")).status_code == 415
    assert (await node.http.put(FILES, files={"other": ("a.txt", b"text")})).status_code == 422
    broken = {"content-type": "multipart/form-data; boundary=b"}
    assert (await node.http.put(FILES, content=b"--b\r\nno head", headers=broken)).status_code == 400
    assert (await node.http.put("/v1/models/-a/b/files", files={"file": ("a", b"")})).status_code == 404


async def test_what_is_around_the_file_is_bounded(node: Node, socket: OldSocket) -> None:
    """A body that does not say how long it is, with a part before the file that does not end."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\ncontent-disposition: form-data; name="other"\r\n\r\n'
        while sent < 20 * MAX_FILE_BYTES:
            sent += 100_000
            yield b"x" * 100_000

    form = {"content-type": "multipart/form-data; boundary=b"}
    assert (await node.http.put(FILES, content=endless(), headers=form)).status_code == 413
    assert sent < 2 * MAX_FILE_BYTES


ODD: dict[str, tuple[bytes, int]] = {
    "no name of a file": (b'name="file"', 200),
    "an empty name": (b'name="file"; filename=""', 200),
    "dots": (b'name="file"; filename=".."', 200),
    "bytes that are no text": (b'name="file"; filename="\xff\xfe\x01.png"', 200),
    "a name in another alphabet": ('name="file"; filename="кот.png"'.encode(), 200),
    "an encoded name": (b"name=\"file\"; filename*=UTF-8''%e2%82%ac%00.png", 200),
    "a long name": (b'name="file"; filename="%b.png"' % (b"n" * 3_000), 200),
    "a type that is none": (b'name="file"; filename="a"\r\ncontent-type: \xff/\x01; \xe9', 200),
    "a long type": (b'name="file"; filename="a"\r\ncontent-type: a/%b' % (b"b" * 3_000), 200),
    "a head that does not end": (b'name="file"; filename="%b"' % (b"n" * 100_000), 400),
    "very many heads": (b'name="file"' + b"\r\na: b" * 1_000, 400),
    "no name": (b'filename="a.png"', 400),
}


@pytest.mark.parametrize("case", ODD)
async def test_odd_names_and_types(node: Node, socket: OldSocket, case: str) -> None:
    head, status = ODD[case]
    body = b"--b\r\ncontent-disposition: form-data; " + head + b"\r\n\r\nsome text\r\n--b--\r\n"
    form = {"content-type": "multipart/form-data; boundary=b"}
    answer = await node.http.put(FILES, content=body, headers=form)
    assert answer.status_code == status, answer.text
    if status == 200:
        await end(node, socket, answer.json()["url"])
        served = await node.http.get(answer.json()["url"])
        assert (served.status_code, served.text) == (200, "some text")


async def test_a_name_and_a_type_that_could_do_harm(node: Node, socket: OldSocket) -> None:
    answer = await node.http.put(FILES, files={"file": ("../../etc/pass wd\n?.html", b"<script>", "text/html")})
    url = answer.json()["url"]
    assert url.endswith("/pass%20wd%3F.html")
    await end(node, socket, url)
    served = await node.http.get(url)
    assert served.status_code == 200
    assert "sandbox" in served.headers["content-security-policy"]


async def test_a_canceled_prediction_takes_no_files(node: Node, socket: OldSocket) -> None:
    prediction = prediction_of(node)
    await node.call("POST", f"/v1/predictions/{prediction}/cancel")
    assert (await put(node)).status_code == 409
