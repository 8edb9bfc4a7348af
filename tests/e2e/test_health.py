"""Unhealthy workers as operators see them: real servers, real agents."""

from pathlib import Path

from support.processes import Server, Stage, until


def health(server: Server, name: str) -> tuple[str, str]:
    """Return how a worker is shown: its health, and why it is in quarantine."""
    row = server.workers()[name]
    return row["health"], (row["quarantine"] or {}).get("reason", "")


def test_a_worker_that_loses_its_runs_is_set_aside_and_comes_back(stage: Stage) -> None:
    server = stage.server(quarantine_after="2", quarantine_s="1.5")
    stage.scripted(server, name="gpu").connected()
    prediction = server.create(crash=2)
    until(lambda: health(server, "gpu") == ("quarantined", "the model's process died"), "quarantine")
    server.restart()
    assert health(server, "gpu")[0] == "quarantined"
    assert server.ended(prediction)["status"] == "succeeded"
    assert health(server, "gpu") == ("ok", "")
    assert [attempt["outcome"] for attempt in server.attempts(prediction)] == ["lost", "lost", "succeeded"]


def test_a_model_that_cannot_be_set_up_is_shown_with_the_reason(stage: Stage, tmp_path: Path) -> None:
    server = stage.server()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "cog.yaml").write_text("predict: [not, a, predictor]\n")
    worker = stage.cog(server, "me/broken", folder, tmp_path / "cache")
    assert worker.join() == 1
    shown, reason = health(server, worker.name)
    row = server.workers()[worker.name]
    assert (shown, row["state"], row["models"][0]["model"]) == ("quarantined", "offline", "me/broken")
    assert reason.startswith("the model was not set up: ")
    assert row["connected_at"] is None
    assert server.token("worker") not in str(row)
