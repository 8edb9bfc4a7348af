"""Retention of a real server: what clients see before and after, and what lies on its disk."""

from pathlib import Path

from support.processes import Stage, until


def test_data_and_files_go_when_their_time_is_over(stage: Stage) -> None:
    server = stage.server(retain_data_s="3")
    stage.scripted(server, slots=2).connected()
    running = server.create(seconds=60)
    server.processing(running)
    prediction = server.create(file="a picture", log=3)
    before = server.ended(prediction)
    assert server.http.get(before["output"]).text == "a picture"
    assert before["data_removed"] is False
    until(lambda: server.get(prediction)["data_removed"], "end of its time")
    after = server.get(prediction)
    assert before["urls"].pop("stream"), "there is nothing to stream any more"
    assert after == {**before, "data_removed": True, "input": {}, "output": None, "logs": ""}
    gone = until(lambda: (found := server.http.get(before["output"])).status_code == 404 and found, "file that is gone")
    assert gone
    assert gone.headers["content-type"] == "application/problem+json"
    folder = Path(server.database_url.removeprefix("sqlite:///")).parent / "files"
    until(lambda: not [path for path in folder.rglob("*") if path.is_file()], "disk without the file")
    assert server.get(running)["status"] == "processing"
    assert prediction in [one["id"] for one in server.ask("GET", "/v1/predictions")["results"]]
