"""Commands about what was lost: the list of what struck out, second lives, workers in quarantine."""

from cli.conftest import Shell
from support.processes import Stage, until


def lost(shell: Shell) -> str:
    """Return a prediction whose three attempts were lost, after one that shows that the worker is well."""
    shell.server.ended(shell.server.create())
    prediction = shell.server.create(crash=3)
    assert shell.server.ended(prediction)["status"] == "failed"
    return prediction


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_what_cannot_be_requeued(shell: Shell) -> None:
    done = shell.server.create()
    shell.server.ended(done)
    failed = shell.server.create(fail="a bug")
    shell.server.ended(failed)
    result = shell.run("predictions", "requeue", done, failed, "nothing")
    assert result.exit_code == 2
    assert [row[0] for row in rows(result.stdout)] == [failed]
    assert f"{done}\tthe server refused this (HTTP 409): The prediction has succeeded" in result.stderr
    assert "has no prediction nothing" in result.stderr
    for arguments in ((), ("--all", done)):
        result = shell.run("predictions", "requeue", *arguments)
        assert (result.exit_code, "name predictions, or --all" in result.stderr) == (2, True)


def test_what_struck_out_is_listed_and_requeued(shell: Shell) -> None:
    first, second = lost(shell), lost(shell)
    shell.server.ended(shell.server.create(fail="a bug"))
    listed = rows(shell.ok("predictions", "list", "--struck-out"))
    assert [row[0] for row in listed] == [second, first]
    assert "lost 3 times" in listed[0][5]
    [[old, new]] = rows(shell.ok("predictions", "requeue", first))
    assert (old, new != first) == (first, True)
    assert [row[0] for row in rows(shell.ok("predictions", "list", "--struck-out"))] == [second]
    assert rows(shell.ok("predictions", "requeue", first)) == [[first, new]], "the same one again"
    [[old, newer]] = rows(shell.ok("predictions", "requeue", "--all"))
    assert old == second
    assert shell.server.get(newer)["input"] == {"crash": 3}
    assert shell.ok("predictions", "requeue", "--all") == ""


def test_workers_are_listed_with_their_health(shell: Shell, stage: Stage) -> None:
    server = stage.server(quarantine_after="1", quarantine_s="600")
    stage.scripted(server, name="gpu").connected()
    own = Shell(server, server.token())
    assert rows(own.ok("workers", "list"))[0][6] == "ok"
    server.create(crash=1)

    def reason() -> str | None:
        shown = rows(own.ok("workers", "list"))[0][6]
        return shown if shown != "ok" else None

    shown = until(reason, "quarantine") or ""
    assert shown.startswith("quarantined ")
    assert shown.endswith("ago: the model's process died")
