"""Accounts, tokens, models and versions: typed functions over named queries."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cogflare.store.base import Database, Hint, Statement, Value


class Account(msgspec.Struct, frozen=True):
    """A tenant."""

    id: str
    username: str
    name: str
    kind: str


class Caller(msgspec.Struct, frozen=True):
    """Who a valid token speaks for; `kind` is admin, api or worker; `expires_at` in microseconds.

    `models` is what a worker's token is limited to; None: to nothing.
    """

    token: str
    account: str
    kind: str
    expires_at: int | None
    username: str
    name: str
    account_kind: str
    models: tuple[str, ...] | None = None


class TokenRow(msgspec.Struct, frozen=True):
    """A token as listed: never the secret, only its `hint` (first characters).

    `max_connections` is how many workers may be connected with it, `connections` how many are, where that was counted.
    """

    id: str
    username: str
    kind: str
    name: str
    hint: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    models: tuple[str, ...] | None
    max_connections: int | None
    connections: int | None = None


class Version(msgspec.Struct, frozen=True):
    """A version; `schema` is its OpenAPI document as JSON text, None where the model has none."""

    account: str
    owner: str
    name: str
    id: str
    cog_version: str
    schema: str | None
    output_kind: str
    created_at: int


class Model(msgspec.Struct, frozen=True):
    """A model with its latest version, if it has one; a limit that its owner has not set is None.

    `requirements` is JSON text.
    """

    account: str
    owner: str
    name: str
    description: str | None
    run_count: int
    rerun: bool
    created_at: int
    run_limit_s: float | None
    start_limit_s: float | None
    max_queued: int | None
    requirements: str | None
    latest: Version | None


class NewToken(msgspec.Struct, frozen=True):
    """A token to store: only the hash of its secret."""

    id: str
    username: str
    kind: str
    name: str
    hash: str
    hint: str
    now: int
    expires_at: int | None = None
    models: tuple[str, ...] | None = None
    max_connections: int | None = None


async def find_token(db: Database, digest: str) -> Caller | None:
    """Return the caller of a token that is not revoked, by the hash of its secret."""
    rows = await db.read("find_token", hash=digest)
    if not rows:
        return None
    fields = [*rows[0][:-1], _models(rows[0][-1])]
    return Caller(*fields)


async def find_account(db: Database, username: str) -> Account | None:
    """Return the account of that name."""
    rows = await db.read("find_account", username=username)
    return Account(*rows[0]) if rows else None


async def get_account(db: Database, id: str) -> Account | None:
    """Return the account of that id."""
    rows = await db.read("get_account", id=id)
    return Account(*rows[0]) if rows else None


async def add_token(db: Database, account: str, token: NewToken) -> bool:
    """Store a token, making its account (with id `account`) if there is none of that name; False if it was there."""
    rows = await db.write(new_account(account, token.username, token.now), new_token(token))
    return bool(rows[1])


def new_account(id: str, username: str, now: int) -> Statement:
    """Return the statement that makes an account, if there is none of that name."""
    return Statement("insert_account", {"id": id, "username": username, "name": username, "kind": "user", "now": now})


def new_token(token: NewToken) -> Statement:
    """Return the statement that stores a token of an account that is there; it answers a row if the secret is new."""
    models = None if token.models is None else msgspec.json.encode(token.models).decode()
    return Statement("insert_token", {**msgspec.structs.asdict(token), "models": models})


async def has_token(db: Database, account: str, token: str) -> bool:
    """Say whether a token of that id, revoked or not, is this account's."""
    return bool(await db.read("token_of_account", id=token, account=account))


async def list_tokens(db: Database, account: str | None, after: str, limit: int) -> list[TokenRow]:
    """Return tokens by id; `account` None means all accounts."""
    return [_token(*row) for row in await db.read("list_tokens", account=account, after=after, limit=limit)]


async def get_token(db: Database, id: str) -> TokenRow | None:
    """Return the token of that id."""
    rows = await db.read("get_token", id=id)
    return _token(*rows[0]) if rows else None


async def has_admin(db: Database, now: int) -> bool:
    """Say whether a valid admin token exists."""
    return bool((await db.read("count_admins", now=now))[0][0])


async def find_model(db: Database, account: str, owner: str, name: str) -> Model | None:
    """Return the model as this account knows it: its own first, then the shared one."""
    rows = await db.read("find_model", account=account, owner=owner, name=name)
    return _model(*rows[0]) if rows else None


async def list_models(db: Database, account: str, after: tuple[str, str], limit: int) -> list[Model]:
    """Return the models that an account may use, by owner and name."""
    owner, name = after
    rows = await db.read("list_models", account=account, after_owner=owner, after_name=name, limit=limit)
    return [_model(*row) for row in rows]


async def find_version(
    db: Database, account: str, version: str, owner: str | None = None, name: str | None = None
) -> Version | None:
    """Return a version that this account may use: of this model, or of any where no model is named."""
    rows = await db.read("find_version", account=account, id=version, owner=owner, name=name)
    return Version(*rows[0]) if rows else None


async def list_versions(db: Database, model: Model, offset: int, limit: int) -> list[Version]:
    """Return a model's versions, newest first."""
    rows = await db.read(
        "list_versions", account=model.account, owner=model.owner, name=model.name, offset=offset, limit=limit
    )
    return [Version(*row) for row in rows]


async def catalogs_with(db: Database, account: str, owner: str, name: str) -> tuple[str, ...]:
    """Return the accounts (own, shared) whose workers may run this model for this account."""
    return tuple(row[0] for row in await db.read("catalogs_with", account=account, owner=owner, name=name))


async def set_model(
    db: Database, account: str, owner: str, name: str, changes: Mapping[str, Value], hints: Sequence[Hint] = ()
) -> bool:
    """Change columns of a model of this account; False if it has no such model."""
    key = {"account": account, "owner": owner, "name": name}
    change = Statement("set_model", {**key, "changes": msgspec.json.encode(changes).decode()})
    rows = await db.write(change, hints=hints)
    return bool(rows[0])


def register(version: Version) -> list[Statement]:
    """Return the statements that add a version, and its model, when a worker first offers it."""
    model = {"account": version.account, "owner": version.owner, "name": version.name}
    fields = msgspec.structs.asdict(version)
    now = fields.pop("created_at")
    return [
        Statement("register_model", {**model, "now": now}),
        Statement("register_version", {**fields, "now": now}),
        Statement("set_latest_version", model),
    ]


def _models(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(msgspec.json.decode(text, type=list[str]))


def _token(*row: Any) -> TokenRow:
    fields = [*row[:8], _models(row[8]), *row[9:]]
    return TokenRow(*fields)


def _model(
    account: str,
    owner: str,
    name: str,
    description: str | None,
    run_count: int,
    rerun: bool,
    created_at: int,
    run_limit_s: float | None,
    start_limit_s: float | None,
    max_queued: int | None,
    requirements: str | None,
    *latest: str | int | None,
) -> Model:
    version = None
    if latest[0] is not None:
        version = msgspec.convert(
            {
                "account": account,
                "owner": owner,
                "name": name,
                **dict(zip(("id", "cog_version", "schema", "output_kind", "created_at"), latest, strict=True)),
            },
            Version,
        )
    limits = (run_limit_s, start_limit_s, max_queued, requirements)
    return Model(account, owner, name, description, run_count, bool(rerun), created_at, *limits, version)
