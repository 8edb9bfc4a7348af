"""The schema is the sum of the migrations, and written down in the reference.

`COGFLARE_REWRITE=1` writes the reference anew; what changed is then seen in the diff.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cogflare.store.open import open_database
from cogflare.store.sql import Library, package_folder
from store.scene import Rows, Scene
from support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

_HEAD = "-- The schema that the migrations make. Written by tests/store/test_migrations.py; do not edit.\n\n"


async def schema_of_sqlite(rows: Rows) -> str:
    found = await rows.fetch(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type = 'trigger', tbl_name, rowid"
    )
    return _HEAD + "\n\n".join(f"{sql};" for (sql,) in found) + "\n"


def schema_of_postgres(server: PostgresServer, url: str) -> str:
    dump = server.dump_schema(url)
    # Settings of the session, and a line with a random word.
    lines = [line for line in dump.splitlines() if not re.match(r"--|SET |SELECT pg_catalog|\\", line)]
    return _HEAD + re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


async def test_the_reference_shows_the_schema(request: pytest.FixtureRequest, rows: Rows, url: str) -> None:
    if rows.dialect == "sqlite":
        schema = await schema_of_sqlite(rows)
    else:
        schema = schema_of_postgres(request.getfixturevalue("postgres_server"), url)
    path = REFERENCE / f"schema.{rows.dialect}.sql"
    if os.environ.get("COGFLARE_REWRITE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(schema)
    assert schema == path.read_text()


async def test_migrate_again_changes_nothing(scene: Scene, quick_url: str) -> None:
    id = await scene.create()
    await scene.db.migrate()
    other = open_database(quick_url)
    await other.migrate()
    await other.aclose()
    assert (await scene.row(id)).phase == "queued"
    count = len(Library(package_folder(), scene.rows.dialect).migrations)
    assert await scene.rows.fetch("SELECT max(version), count(*) FROM schema_version") == [(count, count)]


async def test_both_dialects_have_the_same_tables(new_url: Callable[[str], str]) -> None:
    columns = []
    for kind, sql in (
        (
            "sqlite",
            "SELECT t.name, c.name FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'"
            " ORDER BY t.name, c.cid",
        ),
        (
            "postgres",
            "SELECT table_name::text, column_name::text FROM information_schema.columns WHERE table_schema = 'public'"
            ' ORDER BY table_name COLLATE "C", ordinal_position',
        ),
    ):
        url = new_url(kind)
        database = open_database(url)
        await database.migrate()
        rows = await Rows.open(url)
        columns.append(await rows.fetch(sql))
        await rows.aclose()
        await database.aclose()
    assert columns[0] == columns[1]


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_keys_compare_by_bytes_in_every_locale(rows: Rows) -> None:
    found = await rows.fetch(
        "SELECT DISTINCT i.indrelid::regclass::text, a.attname::text FROM pg_index AS i"
        " JOIN pg_attribute AS a ON a.attrelid = i.indexrelid JOIN pg_collation AS c ON c.oid = a.attcollation"
        " JOIN pg_class AS r ON r.oid = i.indrelid"
        " WHERE c.collname <> 'C' AND r.relnamespace = 'public'::regnamespace"
    )
    assert found == []


async def test_messages_outlive_the_table_that_is_made_anew(url: str, quick_url: str, tmp_path: Path) -> None:
    """The one that knows of creations; what ends a prediction writes to it as before."""
    older = tmp_path / "sql"
    shutil.copytree(str(package_folder()), older)
    for path in sorted(older.glob("*/migrations/*.sql")):
        if path.name > "0005":
            path.unlink()
    database = open_database(quick_url, sql=older)
    await database.migrate()
    await database.aclose()
    rows = await Rows.open(url)
    await rows.run(
        "INSERT INTO deliveries (id, account, prediction, event, url, host, state, tries, created_at)"
        " VALUES ('msg_p', 'a', 'p', 'completed', 'http://x', 'a x:80', 'delivered', 3, 7)"
    )
    database = open_database(quick_url)
    await database.migrate()
    found = await rows.fetch("SELECT id, event, host, state, tries, created_at FROM deliveries")
    assert found == [("msg_p", "completed", "a x:80", "delivered", 3, 7)]
    scene = Scene(database, rows)
    id = await scene.create()
    await rows.run(f"UPDATE predictions SET webhook = 'http://x' WHERE id = '{id}'")
    await rows.run(f"UPDATE predictions SET phase = 'ended', completed_at = 9 WHERE id = '{id}'")
    assert await rows.fetch("SELECT event, state FROM deliveries WHERE created_at = 9") == [("completed", "pending")]
    await rows.aclose()
    await database.aclose()
