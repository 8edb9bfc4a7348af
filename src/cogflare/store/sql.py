"""Named SQL files: what stands in `sql/<dialect>/` becomes queries with positional parameters, and migrations.

A query file holds blocks that each start with a line `-- name: some_name` and hold one statement with `:named`
parameters. They are compiled once, when a database object is made: comments go, white space shrinks (a driver hashes
the text for every execution), and each parameter becomes `?n` (SQLite) or `$n` (PostgreSQL), numbered by first use.
A mistake in a file is a `SQLFileError` that says where.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal, NamedTuple

import msgspec

from cogflare.store.base import Needs, Statement, Value

Dialect = Literal["sqlite", "postgres"]

MAX_PARAMETERS = 100
"""The most parameters one statement may have; the tightest store that we may run on allows no more."""

_MARK = {"sqlite": "?", "postgres": "$"}
_NAME = re.compile(r"^--[ \t]*name:[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
_MIGRATION = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_TOKEN = re.compile(
    r"""
      (?P<gap>    (?: \s+ | --[^\n]* | /\*.*?\*/ )+ )
    | (?P<quoted> \b[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<cast>   :: )
    | (?P<param>  :[A-Za-z_]\w* )
    | (?P<number> [$?]\d+ )
    | (?P<text>   \w+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)


class SQLFileError(Exception):
    """A file of named SQL cannot be understood."""


class Query(msgspec.Struct, frozen=True):
    """One compiled statement: `sql` takes the values of `params` in this order."""

    name: str
    sql: str
    params: tuple[str, ...]

    def order(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """Return the values in the order of the parameters; raises `TypeError` unless the names are exactly these."""
        if len(values) == len(self.params):
            try:
                return tuple([values[name] for name in self.params])
            except KeyError:
                pass
        raise TypeError(f"{self.name} takes {sorted(self.params)}, not {sorted(values)}")


class Step(NamedTuple):
    """A statement ready to run."""

    name: str
    sql: str
    values: tuple[Value, ...]
    needs: Needs


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema, from version `number - 1` to `number`."""

    number: int
    name: str
    script: str


class Library:
    """The queries and migrations of one dialect."""

    def __init__(self, folder: Traversable, dialect: Dialect) -> None:
        """Read `<folder>/<dialect>/*.sql`; migrations are read when first asked for."""
        self._folder = folder.joinpath(dialect)
        self.queries = load_queries(self._folder, dialect)

    @cached_property
    def migrations(self) -> list[Migration]:
        return load_migrations(self._folder.joinpath("migrations"))

    def query(self, name: str) -> Query:
        """Return the query of that name; raises `LookupError`."""
        try:
            return self.queries[name]
        except KeyError:
            raise LookupError(f"there is no query named {name!r}") from None

    def step(self, statement: Statement) -> Step:
        query = self.query(statement.name)
        return Step(statement.name, query.sql, query.order(statement.params), statement.needs)


def package_folder() -> Traversable:
    """Return the folder of the SQL that ships with Cogflare."""
    return files("cogflare.store").joinpath("sql")


def load_queries(folder: Traversable, dialect: Dialect) -> dict[str, Query]:
    """Compile every block of every `*.sql` file of the folder, by name."""
    queries: dict[str, Query] = {}
    for path in _sql_files(folder):
        for name, text in _blocks(path.read_text(encoding="utf-8"), path.name):
            if name in queries:
                raise SQLFileError(f"{path.name}: a query named {name} exists already")
            queries[name] = compile_query(name, text, dialect)
    return queries


def load_migrations(folder: Traversable) -> list[Migration]:
    """Return the migrations in order; their numbers must run from 1 without a gap."""
    found = []
    for path in _sql_files(folder):
        match = _MIGRATION.fullmatch(path.name)
        if match is None:
            raise SQLFileError(f"{path.name}: a migration is named NNNN_name.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    for expected, migration in enumerate(found, 1):
        if migration.number != expected:
            raise SQLFileError(f"migration {migration.number:04} stands where {expected:04} is expected")
    return found


def compile_query(name: str, text: str, dialect: Dialect) -> Query:
    """Turn one statement with `:named` parameters into one with positional parameters."""
    numbers: dict[str, int] = {}
    parts: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match["gap"]:
            parts.append(" ")
        elif match["param"]:
            parts.append(f"{_MARK[dialect]}{numbers.setdefault(token[1:], len(numbers) + 1)}")
        elif match["number"]:
            raise SQLFileError(f"{name}: {token} is not a :named parameter")
        else:
            parts.append(token)
    while parts and parts[-1] in (" ", ";"):
        parts.pop()
    if ";" in parts:
        raise SQLFileError(f"{name}: more than one statement")
    sql = "".join(parts).strip()
    if not sql:
        raise SQLFileError(f"{name}: no statement")
    if len(numbers) > MAX_PARAMETERS:
        raise SQLFileError(f"{name}: {len(numbers)} parameters, and at most {MAX_PARAMETERS} are allowed")
    return Query(name, sql, tuple(numbers))


def _blocks(text: str, where: str) -> Iterator[tuple[str, str]]:
    heads = list(_NAME.finditer(text))
    before = text[: heads[0].start()] if heads else text
    if any(line.strip() and not line.strip().startswith("--") for line in before.splitlines()):
        raise SQLFileError(f"{where}: SQL stands before the first `-- name:` line")
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        if not _IDENTIFIER.fullmatch(head[1]):
            raise SQLFileError(f"{where}: {head[1]!r} is not a query name (lower case, digits, underscores)")
        yield head[1], text[head.end() : following.start() if following else len(text)]


def _sql_files(folder: Traversable) -> list[Traversable]:
    found = (path for path in folder.iterdir() if path.is_file() and path.name.endswith(".sql"))
    return sorted(found, key=lambda path: path.name)
