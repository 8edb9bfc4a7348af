"""What every `Database` promises, run over each of them."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from cogflare.store.base import (
    Conflict,
    Constraint,
    Database,
    Hint,
    Needs,
    SchemaTooNew,
    Statement,
    StoreError,
    Unavailable,
)
from cogflare.store.open import open_database
from store.conftest import SQL

pytestmark = pytest.mark.anyio


def insert(id: str, n: int = 0, body: str | None = None) -> Statement:
    return Statement("insert_item", {"id": id, "n": n, "body": body})


def add(id: str, by: int = 1, needs: Needs = "any") -> Statement:
    return Statement("add_to_item", {"id": id, "by": by}, needs)


def set_if(id: str, was: int, n: int, needs: Needs = "row") -> Statement:
    return Statement("set_item_if", {"id": id, "was": was, "n": n}, needs)


async def items(database: Database) -> dict[str, int]:
    return dict(await database.read("list_items"))


async def test_a_unit_returns_the_rows_of_each_statement(database: Database) -> None:
    rows = await database.write(insert("a", 1, "text"), add("a", 2), add("none"))
    assert rows == [[], [(3,)], []]
    assert await database.read("get_item", id="a") == [("a", 3, "text")]
    assert await database.write() == []


async def test_a_read_sees_what_was_written_just_before(database: Database) -> None:
    await database.write(insert("a"))
    for n in range(1, 30):
        await database.write(add("a"))
        assert await items(database) == {"a": n}


async def test_values_survive_the_way(database: Database) -> None:
    body = "".join(map(chr, [*range(1, 0xD800, 7), 0x1F600]))
    await database.write(insert("é", 2**53 - 1, body), insert("null", 0, None))
    assert await database.read("get_item", id="é") == [("é", 2**53 - 1, body)]
    assert await database.read("get_item", id="null") == [("null", 0, None)]


async def test_a_conflict_undoes_its_unit(database: Database) -> None:
    await database.write(insert("a", 5))
    with pytest.raises(Conflict) as caught:
        await database.write(insert("b"), add("a"), set_if("a", was=0, n=9))
    assert caught.value.statement == "set_item_if"
    assert await items(database) == {"a": 5}


async def test_a_unit_may_stop_early_and_stand(database: Database) -> None:
    await database.write(insert("a", 5))
    rows = await database.write(add("a"), set_if("a", was=0, n=9, needs="row_or_stop"), add("a"), insert("b"))
    assert rows == [[(6,)], [], [], []]
    assert await items(database) == {"a": 6}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after a change"])
async def test_a_refused_unit_leaves_its_neighbours_alone(database: Database, late: bool) -> None:
    await database.write(insert("hot"), insert("taken"))
    first = [add("hot")] if late else []
    units = []
    for number in range(90):
        last = [insert(f"i{number:02}"), set_if("hot", was=-1, n=0), insert("taken")][number % 3]
        units.append(database.write(*first, last))
    outcomes = await asyncio.gather(*units, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, Conflict, Constraint] * 30
    expected = {f"i{number:02}": 0 for number in range(0, 90, 3)}
    assert await items(database) == {**expected, "hot": 30 if late else 0, "taken": 0}


@pytest.mark.parametrize(
    "statement",
    [insert("a", -1), insert("a", 1), Statement("insert_note", {"item": "gone", "n": 1})],
    ids=["check", "unique", "foreign key"],
)
async def test_rules_of_the_schema_hold(database: Database, statement: Statement) -> None:
    await database.write(insert("a"))
    with pytest.raises(Constraint):
        await database.write(insert("b"), statement)
    assert await items(database) == {"a": 0}


async def test_triggers_run_in_the_unit(database: Database) -> None:
    await database.write(insert("a"), add("a"), add("a"))
    with pytest.raises(Conflict):
        await database.write(add("a"), set_if("a", was=0, n=0))
    assert await database.read("count_changes", item="a") == [(2,)]


async def test_a_thousand_units_at_once(database: Database) -> None:
    await database.write(insert("hot"))
    units = [database.write(insert(f"i{number}"), add("hot")) for number in range(1000)]
    outcomes = await asyncio.gather(*units)
    assert sorted(rows[1][0][0] for rows in outcomes) == list(range(1, 1001))
    assert await database.read("sum_items") == [(1001, 1000)]


async def test_one_parameter_carries_ten_thousand_rows(database: Database) -> None:
    rows = [{"id": f"i{number}", "n": number} for number in range(10_000)]
    await database.write(Statement("insert_items", {"items": json.dumps(rows)}))
    assert await database.read("sum_items") == [(10_000, sum(range(10_000)))]


async def test_a_cancelled_caller_does_not_cancel_its_unit(database: Database) -> None:
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    database.listen(heard.put_nowait)
    callers = [
        asyncio.ensure_future(database.write(insert(f"i{number}"), hints=[Hint("item", f"i{number}")]))
        for number in range(20)
    ]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert {(await heard.get()).payload for _ in callers} == {f"i{number}" for number in range(20)}
    assert len(await items(database)) == 20


async def test_hints_come_after_the_commit(database: Database) -> None:
    seen: list[tuple[Hint, asyncio.Task[dict[str, int]]]] = []

    def listener(hint: Hint) -> None:
        seen.append((hint, asyncio.ensure_future(items(database))))

    stop = database.listen(listener)
    await database.write(insert("a"), hints=[Hint("one", "x"), Hint("two", "y"), Hint("one", "x")])
    with pytest.raises(Conflict):
        await database.write(set_if("a", was=7, n=0), hints=[Hint("three", "z")])
    assert [hint for hint, _ in seen] == [Hint("one", "x"), Hint("two", "y")]
    assert [await read for _, read in seen] == [{"a": 0}, {"a": 0}]
    stop()
    stop()
    await database.write(insert("b"), hints=[Hint("four", "w")])
    assert len(seen) == 2


async def test_a_listener_that_fails_harms_nobody(database: Database) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    heard: list[Hint] = []

    def fail(_: Hint) -> None:
        raise RuntimeError("broken")

    database.listen(fail)
    database.listen(heard.append)
    await database.write(insert("a"), hints=[Hint("one", "x")])
    asyncio.get_running_loop().set_exception_handler(None)
    assert heard == [Hint("one", "x")]
    assert [str(context["exception"]) for context in reported] == ["broken"]


async def test_a_hint_must_be_small(database: Database) -> None:
    with pytest.raises(ValueError, match="larger than"):
        await database.write(insert("a"), hints=[Hint("one", "é" * 3000)])
    assert await items(database) == {}


async def test_mistakes_of_the_program_are_told_and_isolated(database: Database) -> None:
    with pytest.raises(LookupError):
        await database.read("gone")
    with pytest.raises(TypeError):
        await database.write(Statement("add_to_item", {"id": "a"}))
    wrong: Any = ["a list"]
    outcomes = await asyncio.gather(
        database.write(insert("a")), database.write(insert(wrong)), database.write(insert("b")), return_exceptions=True
    )
    assert outcomes[0] == outcomes[2] == [[]]
    assert isinstance(outcomes[1], TypeError | StoreError)
    with pytest.raises((TypeError, StoreError)):
        await database.read("get_item", id=wrong)
    assert await items(database) == {"a": 0, "b": 0}


async def test_migrate_again_changes_nothing(database: Database, url: str) -> None:
    await database.write(insert("a"))
    await database.migrate()
    others = [open_database(url, sql=SQL) for _ in range(3)]
    await asyncio.gather(*(other.migrate() for other in others))
    assert await others[0].read("list_items") == [("a", 0)]
    await asyncio.gather(*(other.aclose() for other in others))


async def test_two_nodes_may_migrate_an_empty_database_at_once(url: str) -> None:
    nodes = [open_database(url, sql=SQL) for _ in range(4)]
    await asyncio.gather(*(node.migrate() for node in nodes))
    await nodes[0].write(insert("a"))
    assert await items(nodes[1]) == {"a": 0}
    await asyncio.gather(*(node.aclose() for node in nodes))


async def test_a_newer_schema_is_refused(database: Database, url: str, tmp_path: Any) -> None:
    for dialect in ("sqlite", "postgres"):
        folder = tmp_path / "old" / dialect / "migrations"
        folder.mkdir(parents=True)
        source = SQL / dialect / "migrations" / "0001_items.sql"
        (folder / source.name).write_text(source.read_text())
    older = open_database(url, sql=tmp_path / "old")
    with pytest.raises(SchemaTooNew, match="version 2"):
        await older.migrate()
    await older.aclose()


async def test_a_broken_migration_changes_nothing(database: Database, url: str, tmp_path: Any) -> None:
    for dialect in ("sqlite", "postgres"):
        folder = tmp_path / "new" / dialect / "migrations"
        folder.mkdir(parents=True)
        for source in (SQL / dialect / "migrations").iterdir():
            (folder / source.name).write_text(source.read_text())
        (folder / "0003_broken.sql").write_text("DELETE FROM items; INSERT INTO gone VALUES (1);")
    await database.write(insert("a"))
    newer = open_database(url, sql=tmp_path / "new")
    with pytest.raises(StoreError, match="gone"):
        await newer.migrate()
    await newer.aclose()
    await database.migrate()
    assert await items(database) == {"a": 0}


async def test_close_finishes_what_is_under_way(database: Database, url: str) -> None:
    writes = [asyncio.ensure_future(database.write(insert(f"i{number}"))) for number in range(300)]
    await asyncio.sleep(0)
    await asyncio.gather(database.aclose(), database.aclose())
    assert await asyncio.gather(*writes) == [[[]]] * 300
    calls: list[Callable[[], Any]] = [
        lambda: database.write(insert("late")),
        lambda: database.read("list_items"),
        database.migrate,
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await call()
    again = open_database(url, sql=SQL)
    assert len(await items(again)) == 300
    await again.aclose()


async def test_close_without_a_call_is_quiet(url: str) -> None:
    await open_database(url, sql=SQL).aclose()
