"""The loader of named SQL, and what holds for the SQL that ships."""

from pathlib import Path

import pytest

from cogflare.store.base import Statement
from cogflare.store.sql import (
    Dialect,
    Library,
    Query,
    SQLFileError,
    compile_query,
    load_migrations,
    load_queries,
    package_folder,
)

DIALECTS: tuple[Dialect, ...] = ("sqlite", "postgres")


@pytest.mark.parametrize(
    ("text", "sqlite", "postgres", "params"),
    [
        ("SELECT :a, :b, :a;", "SELECT ?1, ?2, ?1", "SELECT $1, $2, $1", ("a", "b")),
        ("SELECT :a::text, x::int", "SELECT ?1::text, x::int", "SELECT $1::text, x::int", ("a",)),
        ("SELECT ':a', ':b''s :c', :d", "SELECT ':a', ':b''s :c', ?1", "SELECT ':a', ':b''s :c', $1", ("d",)),
        (r"SELECT E'\':a', :b", r"SELECT E'\':a', ?1", r"SELECT E'\':a', $1", ("b",)),
        ('SELECT ":a;" FROM t', 'SELECT ":a;" FROM t', 'SELECT ":a;" FROM t', ()),
        ("SELECT $$:a; 'x$$, $q$ :b $$ $q$, :c", "SELECT $$:a; 'x$$, $q$ :b $$ $q$, ?1", None, ("c",)),
        ("-- about :a\nSELECT 1 -- it's :b;\n  + /* :c; ' */ :d", "SELECT 1 + ?1", "SELECT 1 + $1", ("d",)),
        ("SELECT a[1:2], 'two  spaces'\n\n FROM t ; -- end", "SELECT a[1:2], 'two  spaces' FROM t", None, ()),
        ("SELECT :a1_b,(:c)", "SELECT ?1,(?2)", "SELECT $1,($2)", ("a1_b", "c")),
    ],
)
def test_parameters_become_positions(text: str, sqlite: str, postgres: str | None, params: tuple[str, ...]) -> None:
    assert compile_query("q", text, "sqlite") == Query("q", sqlite, params)
    assert compile_query("q", text, "postgres") == Query("q", postgres or sqlite.replace("?", "$"), params)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT 1; SELECT 2", "more than one"),
        ("-- nothing here\n;", "no statement"),
        ("SELECT ?1", "not a :named"),
        ("SELECT $1", "not a :named"),
        (f"SELECT {', '.join(f':p{number}' for number in range(101))}", "at most 100"),
    ],
)
def test_a_bad_statement_is_refused(text: str, why: str) -> None:
    with pytest.raises(SQLFileError, match=why):
        compile_query("q", text, "sqlite")


def test_a_hundred_parameters_are_allowed() -> None:
    text = f"SELECT {', '.join(f':p{number}' for number in range(100))}"
    assert len(compile_query("q", text, "sqlite").params) == 100


def test_values_are_ordered_and_names_must_fit() -> None:
    query = compile_query("q", "SELECT :b, :a, :b", "sqlite")
    assert query.order({"a": 1, "b": 2}) == (2, 1)
    for wrong in ({"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}):
        with pytest.raises(TypeError, match="q takes"):
            query.order(wrong)


def test_blocks_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "one.sql").write_text(
        "-- About this file.\n\n-- name: first\nSELECT 1;\n--name:second\n-- why\nSELECT 2\n"
    )
    (tmp_path / "two.sql").write_text("-- name: third  \r\nSELECT 3;\r\n")
    (tmp_path / "notes.txt").write_text("not SQL")
    queries = load_queries(tmp_path, "sqlite")
    assert {name: query.sql for name, query in queries.items()} == {
        "first": "SELECT 1",
        "second": "SELECT 2",
        "third": "SELECT 3",
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT 0;\n-- name: a\nSELECT 1", "before the first"),
        ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;", "exists already"),
        ("-- name: Not Good\nSELECT 1;", "not a query name"),
        ("-- name: a\n-- name: b\nSELECT 1", "no statement"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "bad.sql").write_text(text)
    with pytest.raises(SQLFileError, match=why):
        load_queries(tmp_path, "sqlite")


def test_migrations_are_numbered_without_a_gap(tmp_path: Path) -> None:
    (tmp_path / "0002_two.sql").write_text("SELECT 2")
    with pytest.raises(SQLFileError, match="0001 is expected"):
        load_migrations(tmp_path)
    (tmp_path / "0001_one.sql").write_text("SELECT 1")
    assert [migration.name for migration in load_migrations(tmp_path)] == ["one", "two"]
    (tmp_path / "3_three.sql").write_text("SELECT 3")
    with pytest.raises(SQLFileError, match="NNNN_name"):
        load_migrations(tmp_path)


def test_an_unknown_name_is_told() -> None:
    library = Library(Path(__file__).parent / "sql", "sqlite")
    with pytest.raises(LookupError, match="no query named 'gone'"):
        library.step(Statement("gone", {}))


@pytest.mark.parametrize("folder", [Path(__file__).parent / "sql", package_folder()], ids=["tests", "package"])
def test_both_dialects_offer_the_same(folder: Path) -> None:
    sqlite, postgres = (Library(folder, dialect) for dialect in DIALECTS)
    assert sqlite.queries.keys() == postgres.queries.keys()
    for name, query in sqlite.queries.items():
        assert set(query.params) == set(postgres.queries[name].params), name
    assert [migration.name for migration in sqlite.migrations] == [migration.name for migration in postgres.migrations]
