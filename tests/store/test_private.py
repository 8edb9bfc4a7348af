"""What a database holds is nobody else's business on the machine."""

from pathlib import Path

import pytest

from cogflare.store.open import open_database

pytestmark = pytest.mark.anyio


async def test_a_new_sqlite_file_and_its_log_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    db = open_database(f"sqlite:///{tmp_path / 'cogflare.db'}")
    try:
        await db.migrate()
        modes = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.glob("cogflare.db*")}
        assert "cogflare.db-wal" in modes
        assert {name for name, mode in modes.items() if mode} <= {"cogflare.db.lock"}
    finally:
        await db.aclose()
