"""Secrets of accounts: one in use, made once, and a rotation that breaks no receiver."""

import asyncio
from pathlib import Path

import pytest

from cogflare.domain.signatures import verify
from cogflare.engine.secrets import FILES, OVERLAP_S, WEBHOOKS, Secrets, Signer
from cogflare.store.base import Database
from cogflare.vault import Vault
from engine.rig import SECRET_KEY, MovableClock

pytestmark = pytest.mark.anyio


class Node:
    """What one server has of secrets."""

    def __init__(self, db: Database) -> None:
        self.clock = MovableClock()
        self.secrets = Secrets(db, self.clock, Vault(SECRET_KEY, Path()))
        self.signer = Signer(self.secrets)

    async def keys(self) -> list[bytes]:
        return [secret.key for secret in await self.secrets.valid("ada", WEBHOOKS)]


@pytest.fixture
def node(store: Database) -> Node:
    return Node(store)


async def test_a_secret_is_made_once_per_account_and_purpose(store: Database, node: Node) -> None:
    key = await node.secrets.secret("ada", WEBHOOKS)
    assert len(key) >= 24
    assert await node.secrets.secret("ada", WEBHOOKS) == key
    assert await Node(store).secrets.secret("ada", WEBHOOKS) == key
    others = {await node.secrets.secret("bob", WEBHOOKS), await node.secrets.secret("ada", FILES)}
    assert len(others | {key}) == 3
    stored = await store.read("find_secrets", account="ada", purpose=WEBHOOKS, now=0)
    assert key not in str(stored).encode()


async def test_nodes_that_make_the_first_one_at_once_agree(store: Database) -> None:
    nodes = [Node(store) for _ in range(8)]
    assert len(set(await asyncio.gather(*(each.secrets.secret("ada", WEBHOOKS) for each in nodes)))) == 1


async def test_after_a_rotation_the_old_one_signs_along_for_a_day(node: Node) -> None:
    old = await node.secrets.secret("ada", WEBHOOKS)
    new = (await node.secrets.rotate("ada", WEBHOOKS))[0].key
    assert new != old
    assert await node.secrets.secret("ada", WEBHOOKS) == new
    headers = await node.signer.headers("ada", "msg_1", 7, b"{}")
    for key in (old, new):
        verify(key, headers, b"{}", 7)
    node.clock.wall_ahead_s = OVERLAP_S - 60
    assert await node.keys() == [new, old]
    node.clock.wall_ahead_s = OVERLAP_S + 60
    assert await node.keys() == [new]
    assert (await node.signer.headers("ada", "msg_1", 7, b"{}"))["webhook-signature"].count("v1,") == 1


async def test_never_more_than_two_count(node: Node) -> None:
    for _ in range(5):
        await node.secrets.rotate("ada", WEBHOOKS)
    kept = await node.secrets.look("ada", WEBHOOKS)
    assert [secret.expires_at is None for secret in kept] == [True, False]


async def test_rotations_at_once_are_one_rotation(store: Database, node: Node) -> None:
    old = await node.secrets.secret("ada", WEBHOOKS)
    nodes = [Node(store) for _ in range(6)]
    await asyncio.gather(*(each.secrets.look("ada", WEBHOOKS) for each in nodes))
    await asyncio.gather(*(each.secrets.rotate("ada", WEBHOOKS) for each in nodes))
    in_use = [secret for secret in await node.secrets.look("ada", WEBHOOKS) if secret.expires_at is None]
    assert len(in_use) == 1
    assert in_use[0].key != old


async def test_a_clock_that_was_set_back_rotates_all_the_same(node: Node) -> None:
    await node.secrets.rotate("ada", WEBHOOKS)
    before = await node.secrets.secret("ada", WEBHOOKS)
    node.clock.wall_ahead_s = -3 * 86_400
    await node.secrets.rotate("ada", WEBHOOKS)
    after = (await node.keys())[0]
    assert after != before
    assert (await node.keys())[1] == before


async def test_other_nodes_hear_of_a_rotation(store: Database, node: Node) -> None:
    other = Node(store)
    await other.secrets.secret("ada", WEBHOOKS)
    new = (await node.secrets.rotate("ada", WEBHOOKS))[0].key
    async with asyncio.timeout(5):
        while await other.secrets.secret("ada", WEBHOOKS) != new:
            await asyncio.sleep(0.01)
