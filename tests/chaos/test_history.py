"""The files of history: shared by processes, and sound after one of them was killed in mid-line."""

from pathlib import Path

from cogflare.cli.verification.history import Asked, Begun, Died, Event, Recorder, Seen, read


def test_what_was_noted_is_read_in_the_order_of_its_moments(tmp_path: Path) -> None:
    one, two = Recorder(tmp_path / "one.jsonl"), Recorder(tmp_path / "two.jsonl")
    first = Asked(at=1, client="c", tag="t")
    second = Begun(at=2, worker="w", agent_pid=7, model_pid=8, prediction="p", attempt=1, tag="t")
    third = Seen(at=3, asked_at=2, client="c", prediction="p", status="succeeded", output=["a"], logs="", error=None)
    one.note(third)
    two.note(second)
    one.note(first)
    one.close()
    two.close()

    assert read([tmp_path / "one.jsonl", tmp_path / "two.jsonl"]) == [first, second, third]


def test_half_a_line_is_dropped_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    killed, alive = Recorder(path), Recorder(path)
    events: list[Event] = [Asked(at=1, client="c", tag="a"), Died(at=2, what="model", name="model-1", pid=5, how="-9")]
    killed.note(events[0])
    with path.open("ab") as file:
        file.write(b'\n{"event":"Asked","at":2,"cli')
    alive.note(events[1])

    assert read([path]) == events
