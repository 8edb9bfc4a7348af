"""URLs of databases."""

from pathlib import Path

import pytest

from cogflare.store.open import open_database
from cogflare.store.postgres import PostgresDatabase
from cogflare.store.sqlite import SQLiteDatabase

SQL = Path(__file__).parent / "sql"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:///relative.db", SQLiteDatabase),
        ("sqlite:////var/lib/absolute.db?synchronous=normal", SQLiteDatabase),
        ("postgresql://user:word@host:5432/name", PostgresDatabase),
        ("postgres://host/name", PostgresDatabase),
    ],
)
def test_the_scheme_chooses_the_driver(url: str, kind: type) -> None:
    assert isinstance(open_database(url, sql=SQL), kind)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cogflare.db",
        "mysql://host/name",
        "sqlite://",
        "sqlite:///",
        "sqlite://relative.db",
        "sqlite:///:memory:",
        "sqlite:///a.db?synchronous=maybe",
        "sqlite:///a.db?mode=ro",
    ],
)
def test_a_bad_url_is_a_clear_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"write sqlite:///|starts with|synchronous is|no such option"):
        open_database(url, sql=SQL)


def test_an_error_shows_no_password() -> None:
    with pytest.raises(ValueError, match="starts with") as caught:
        open_database("postgress://user:secret@host/name", sql=SQL)
    assert "secret" not in str(caught.value)
