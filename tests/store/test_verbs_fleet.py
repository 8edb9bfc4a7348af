"""What the verbs of links and leases, accounts, models and files promise, over both dialects."""

import msgspec
import pytest

from cogflare.store import catalog, files, fleet
from cogflare.store.base import Conflict, Statement, Value
from cogflare.store.catalog import Account, Caller, NewToken
from cogflare.store.fleet import HeldAttempt, LiveAttempt
from cogflare.store.listing import Query, list_page
from cogflare.store.recovery import Standing
from store.scene import QUEUE, Scene

pytestmark = pytest.mark.anyio


# --- links and leases ------------------------------------------------------------------------------------------------


async def test_every_hello_raises_the_epoch(scene: Scene) -> None:
    for epoch in (1, 2, 3):
        await scene.link("w1")
        assert scene.epochs["w1"] == epoch
    worker = (await fleet.list_workers(scene.db, "shared", "", 10))[0]
    assert (worker.link_epoch, worker.state, worker.name, worker.busy) == (3, "online", "name of w1", 0)
    await scene.db.write(fleet.close_link("w1", 2, "away", scene.tick()))
    assert (await fleet.list_workers(scene.db, None, "", 10))[0].state == "online"
    await scene.db.write(fleet.close_link("w1", 3, "away", scene.tick()))
    assert (await fleet.list_workers(scene.db, None, "", 10))[0].state == "away"


async def test_a_worker_belongs_to_its_account(scene: Scene) -> None:
    await scene.account("other")
    await scene.link("w1")
    assert await fleet.open_link(scene.db, scene.hello("w1", "other"), []) is None
    await scene.link("w1")
    assert scene.epochs["w1"] == 2
    opened = await fleet.open_link(scene.db, scene.hello("w0", "other"), [])
    assert opened == (1, [], Standing())
    assert [worker.id for worker in await fleet.list_workers(scene.db, None, "", 10)] == ["w0", "w1"]
    assert [worker.id for worker in await fleet.list_workers(scene.db, None, "w0", 10)] == ["w1"]
    assert [worker.id for worker in await fleet.list_workers(scene.db, "other", "", 10)] == ["w0"]


async def test_a_node_that_starts_has_no_links(scene: Scene) -> None:
    await scene.link("w1")
    await scene.db.write(Statement("release_node", {"node": "node2", "now": scene.tick()}))
    assert await scene.rows.fetch("SELECT state FROM workers") == [("online",)]
    forget = Statement("forget_worker", {"id": "w1", "account": "shared"})
    assert await scene.db.write(forget) == [[]]
    await scene.db.write(Statement("release_node", {"node": "node1", "now": scene.tick()}))
    assert await scene.rows.fetch("SELECT state FROM workers") == [("away",)]
    assert await scene.db.write(Statement("forget_worker", {"id": "w1", "account": "other"})) == [[]]
    assert await scene.db.write(forget) == [[("w1",)]]


async def test_what_a_worker_still_holds_goes_on(scene: Scene) -> None:
    keys = []
    for _ in range(2):
        await scene.create()
        keys.append(await scene.claim_key())
    await scene.checkpoint(keys[0], items=2, log_bytes=7)
    adopted = await scene.link("w1", held=[*keys, (keys[0][0], 2), ("gone", 1)])
    started = (await scene.attempt(keys[0])).started_at
    assert sorted(adopted, key=msgspec.structs.astuple) == [
        HeldAttempt(*keys[0], started, 2, 7),
        HeldAttempt(*keys[1], None, 0, 0),
    ]
    assert await fleet.live_of(scene.db, "w1", epoch=2) == dict.fromkeys(keys, 1)
    assert await fleet.live_of(scene.db, "w1", epoch=1) == {}
    assert (await fleet.list_workers(scene.db, None, "", 1))[0].busy == 2
    await scene.finish(keys[0])
    await scene.finish(keys[1])


async def test_a_rescued_attempt_goes_on_where_nobody_claimed_it(scene: Scene) -> None:
    started, fresh, taken, foreign = [await scene.create() for _ in range(4)]
    keys = [await scene.claim_key("w2" if id == foreign else "w1") for id in (started, fresh, taken, foreign)]
    await scene.checkpoint(keys[0], items=2, log_bytes=5)
    for key in (keys[2], keys[0], keys[1], keys[3]):
        await scene.requeue(key)
    await scene.rows.run(f"UPDATE queue_entries SET priority = 1 WHERE prediction <> '{taken}'")
    assert await scene.claim_key("w3") == (taken, 2)
    adopted = await scene.link("w1", held=keys)
    assert sorted((item.prediction, item.output_items, item.log_bytes) for item in adopted) == [
        (started, 2, 5),
        (fresh, 0, 0),
    ]
    row = await scene.row(started)
    assert (row.phase, row.status, row.strikes, row.output_items, row.log_bytes) == ("running", "processing", 0, 2, 5)
    assert [(await scene.row(id)).phase for id in (fresh, taken, foreign)] == ["assigned", "assigned", "queued"]
    assert await scene.entries() == [(foreign, QUEUE)]
    assert await scene.waiting() == {(QUEUE, "acct"): 1}
    assert await scene.occupied() == {keys[0], keys[1], (taken, 2)}
    assert [(await scene.attempt(key)).outcome for key in keys] == [None, None, "lost", "lost"]
    await scene.finish(keys[0])
    await scene.requeue(keys[1])
    with pytest.raises(Conflict):
        await scene.finish(keys[2])


async def test_a_prediction_that_ended_is_not_taken_up(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.cancel(key)
    assert await scene.link("w1", held=[key]) == []
    assert await scene.occupied() == {key}
    assert await scene.link("w1", held=[]) == []
    assert await scene.occupied() == set()


async def test_a_hello_frees_what_it_does_not_list(scene: Scene) -> None:
    listed, unlisted, running, other = [await scene.create() for _ in range(4)]
    keys = [await scene.claim_key("w2" if id == other else "w1") for id in (listed, unlisted, running, other)]
    for key in (keys[0], keys[1]):
        await scene.finish(key)
    await scene.finish(keys[3], worker="w2")
    await scene.link("w1", held=[keys[0]])
    # What has not ended is for a rescuer to take back.
    assert await scene.occupied() == {keys[0], keys[2], keys[3]}


async def test_a_renewal_answers_what_is_still_wanted(scene: Scene) -> None:
    keys = []
    for _ in range(4):
        await scene.create()
        keys.append(await scene.claim_key())
    await scene.cancel(keys[1])
    await scene.requeue(keys[2])
    await scene.rows.run(f"UPDATE predictions SET phase = 'ended' WHERE id = '{keys[3][0]}'")

    async def renewed(worker: str, epoch: int) -> list[tuple[str, int]]:
        rows = await scene.db.write(fleet.renew(worker, epoch, [*keys, ("gone", 1)]))
        return [(prediction, attempt) for prediction, attempt in rows[0]]

    assert await renewed("w1", 1) == [keys[0]]
    assert await renewed("w1", 0) == await renewed("w1", 2) == await renewed("w2", 1) == []
    assert (await scene.attempt(keys[0])).renewals == 1
    await scene.link("w1", held=[keys[0]])
    assert await renewed("w1", 1) == []
    assert await renewed("w1", 2) == [keys[0]]
    assert [(live.prediction, live.renewals) for live in await fleet.live_attempts(scene.db)] == [
        (keys[0][0], 3),
        (keys[3][0], 0),
    ]


async def test_live_attempts_are_those_that_have_not_ended(scene: Scene) -> None:
    keys = []
    for _ in range(3):
        await scene.create()
        keys.append(await scene.claim_key())
    await scene.finish(keys[0])
    await scene.requeue(keys[1])
    assert await fleet.live_attempts(scene.db) == [LiveAttempt(*keys[2], "w1", 0)]
    assert await scene.occupied() == {keys[0], keys[2]}


async def test_a_worker_is_found_by_its_account(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()
    fields: dict[str, Value] = {"prediction": key[0], "attempt": 1, "worker": "w1", "account": "shared"}
    assert await scene.db.read("held_attempt", **fields) == [(None, 1, "o/m")]
    assert await scene.db.read("held_attempt", **{**fields, "account": "other"}) == []
    assert await scene.db.read("held_attempt", **{**fields, "worker": "w2"}) == []
    assert await fleet.get_attempt(scene.db, key[0], 2) is None


# --- accounts and tokens ---------------------------------------------------------------------------------------------


def token(id: str, username: str = "ann", kind: str = "api", expires_at: int | None = None) -> NewToken:
    return NewToken(id, username, kind, f"name of {id}", f"hash of {id}", "cft_1", 5, expires_at)


async def test_a_token_makes_its_account_and_speaks_for_it(scene: Scene) -> None:
    assert await catalog.add_token(scene.db, "a1", token("t1", expires_at=9))
    assert await catalog.add_token(scene.db, "a2", token("t2"))
    assert not await catalog.add_token(scene.db, "a3", token("t2"))
    assert await catalog.find_token(scene.db, "hash of t1") == Caller("t1", "a1", "api", 9, "ann", "ann", "user")
    assert await catalog.find_account(scene.db, "ann") == Account("a1", "ann", "ann", "user")
    assert await catalog.find_account(scene.db, "bob") is None
    assert await scene.db.read("get_account", id="shared") == [("shared", "shared", "Shared", "shared")]
    assert await catalog.find_token(scene.db, "hash of t3") is None
    assert [await scene.db.read("token_is_valid", id="t1", now=now) for now in (8, 9)] == [[(1,)], []]
    assert await scene.db.read("token_is_valid", id="t2", now=9) == [(1,)]


async def test_tokens_are_listed_and_revoked_by_account(scene: Scene) -> None:
    for number, username in enumerate(("ann", "bob", "ann"), 1):
        await catalog.add_token(scene.db, f"a-{username}", token(f"t{number}", username))
    assert [row.id for row in await catalog.list_tokens(scene.db, None, "", 10)] == ["t1", "t2", "t3"]
    assert [row.id for row in await catalog.list_tokens(scene.db, None, "t1", 1)] == ["t2"]
    assert [row.username for row in await catalog.list_tokens(scene.db, "a-ann", "", 10)] == ["ann", "ann"]

    async def revoke(id: str, account: str | None, now: int) -> bool:
        return bool((await scene.db.write(Statement("revoke_token", {"id": id, "account": account, "now": now})))[0])

    assert not await revoke("t1", "a-bob", 7)
    assert await revoke("t1", "a-ann", 8)
    assert await revoke("t1", None, 9)
    assert await catalog.find_token(scene.db, "hash of t1") is None
    assert (await catalog.list_tokens(scene.db, "a-ann", "", 1))[0].revoked_at == 8
    assert await scene.db.read("token_is_valid", id="t1", now=1) == []


async def test_an_admin_is_known(scene: Scene) -> None:
    assert not await catalog.has_admin(scene.db, 5)
    await catalog.add_token(scene.db, "a1", token("t1", "admin", "admin", expires_at=9))
    assert await catalog.has_admin(scene.db, 8)
    assert not await catalog.has_admin(scene.db, 9)
    await catalog.add_token(scene.db, "a1", token("t2", "admin", "admin"))
    assert await catalog.has_admin(scene.db, 9)
    await scene.db.write(Statement("revoke_token", {"id": "t2", "account": None, "now": 7}))
    assert not await catalog.has_admin(scene.db, 9)


# --- models and versions ---------------------------------------------------------------------------------------------


async def test_own_models_come_before_shared_ones(scene: Scene) -> None:
    await scene.account("ann")
    await scene.account("bob")
    await scene.model("shared", "o", "m", "v1")
    await scene.model("shared", "o", "z", "v9")
    await scene.model("ann", "o", "m", "v2", "text")
    await scene.model("bob", "o", "secret", "v3")

    async def latest(account: str) -> dict[str, str]:
        models = await catalog.list_models(scene.db, account, ("", ""), 10)
        return {model.name: model.latest.id for model in models if model.latest is not None}

    assert await latest("ann") == {"m": "v2", "z": "v9"}
    assert await latest("bob") == {"m": "v1", "secret": "v3", "z": "v9"}
    assert await latest("shared") == {"m": "v1", "z": "v9"}
    page = await catalog.list_models(scene.db, "ann", ("o", "m"), 1)
    assert [model.name for model in page] == ["z"]
    model = await catalog.find_model(scene.db, "ann", "o", "m")
    assert model is not None
    assert model.latest is not None
    assert (model.account, model.latest.output_kind, model.latest.schema) == ("ann", "text", '{"a": "\\u0000"}')
    assert model.rerun is False
    assert await catalog.find_model(scene.db, "ann", "o", "secret") is None
    assert await catalog.catalogs_with(scene.db, "bob", "o", "m") == ("shared",)
    assert sorted(await catalog.catalogs_with(scene.db, "ann", "o", "m")) == ["ann", "shared"]
    found = await catalog.find_version(scene.db, "bob", "v1")
    assert found is not None
    assert (found.account, found.owner, found.name) == ("shared", "o", "m")
    assert await catalog.find_version(scene.db, "bob", "v2") is None
    assert await catalog.find_version(scene.db, "bob", "v1", "o", "other") is None
    assert await catalog.find_version(scene.db, "bob", "v1", "o", "m") == found


async def test_versions_are_listed_newest_first(scene: Scene) -> None:
    for version in ("v1", "v2", "v3", "v2"):
        await scene.model("shared", "o", "m", version)
    model = await catalog.find_model(scene.db, "shared", "o", "m")
    assert model is not None
    assert model.latest is not None
    assert model.latest.id == "v3"
    assert [version.id for version in await catalog.list_versions(scene.db, model, 0, 10)] == ["v3", "v2", "v1"]
    assert [version.id for version in await catalog.list_versions(scene.db, model, 1, 1)] == ["v2"]


async def test_runs_are_counted(scene: Scene) -> None:
    await scene.model("shared", "o", "m", "v1")
    for _ in range(3):
        await scene.create()
    model = await catalog.find_model(scene.db, "shared", "o", "m")
    assert model is not None
    assert model.run_count == 3


# --- files -----------------------------------------------------------------------------------------------------------


async def test_an_output_file_is_bound_by_the_finish_that_names_it(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key()

    async def add(id: str, worker: str = "w1", attempt: int = 1) -> bool | None:
        return await files.add_output(
            scene.db,
            id=id,
            prediction=key[0],
            attempt=attempt,
            worker=worker,
            name="a.png",
            content_type="image/png",
            now=7,
        )

    assert await add("whole")
    assert await add("broken")
    assert not await add("other", worker="w2")
    assert not await add("other", attempt=2)
    assert await files.complete(scene.db, "whole", 3, "sha", "md5")
    assert not await files.complete(scene.db, "gone", 3, "sha", "md5")
    pending = await files.get(scene.db, "whole")
    assert pending == files.FileRow(
        "whole", "acct", "output", *key, "a.png", "image/png", 3, "sha", "md5", None, "pending", 7, None
    )
    await scene.finish(key, has_files=True)
    assert await files.get(scene.db, "whole") == msgspec.structs.replace(pending, state="bound")
    broken = await files.get(scene.db, "broken")
    assert broken is not None
    assert broken.state == "pending"
    assert not await files.complete(scene.db, "whole", 4, "other", "md5")
    assert not await add("late")
    assert await files.get(scene.db, "late") is None


async def test_the_files_of_an_old_attempt_stay_unbound(scene: Scene) -> None:
    await scene.create()
    old = await scene.claim_key("w1")
    fields = {"name": "a", "content_type": "b", "now": 1}
    assert await files.add_output(scene.db, id="old", prediction=old[0], attempt=1, worker="w1", **fields)  # type: ignore[arg-type]
    await files.complete(scene.db, "old", 1, "sha", "md5")
    await scene.requeue(old)
    assert not await files.add_output(scene.db, id="late", prediction=old[0], attempt=1, worker="w1", **fields)  # type: ignore[arg-type]
    new = await scene.claim_key("w2")
    await scene.finish(new, worker="w2", has_files=True)
    file = await files.get(scene.db, "old")
    assert file is not None
    assert file.state == "pending"


# --- tenants ---------------------------------------------------------------------------------------------------------


async def test_tenants_do_not_see_each_other(scene: Scene) -> None:
    for account in ("ann", "bob"):
        await catalog.add_token(scene.db, account, token(f"t-{account}", account))
        await scene.model(account, account, "m", "v1")
        opened = await fleet.open_link(scene.db, scene.hello(f"w-{account}", account), [])
        assert opened is not None
        scene.epochs[f"w-{account}"] = opened[0]
    mine = await scene.create("ann", catalog="ann", queues=["ann/ann/m"])
    assert await scene.claim("w-bob", queues=("bob/bob/m", "bob:v1")) is None
    claimed = await scene.claim("w-ann", queues=("ann/ann/m", "ann:v1"))
    assert claimed is not None
    key = (claimed.prediction, claimed.attempt)
    assert key == (mine, 1)
    with pytest.raises(Conflict):
        await scene.finish(key, worker="w-bob")
    assert await scene.db.write(fleet.renew("w-bob", 1, [key]), fleet.free_slots("w-bob", 1, [key], 1)) == [[], []]
    opened = await fleet.open_link(scene.db, scene.hello("w-bob", "bob"), [key])
    assert opened == (2, [], Standing())
    assert await list_page(scene.db, Query("bob")) == []
    assert await catalog.find_model(scene.db, "bob", "ann", "m") is None
    assert await catalog.catalogs_with(scene.db, "bob", "ann", "m") == ()
    assert [row.id for row in await catalog.list_tokens(scene.db, "bob", "", 10)] == ["t-bob"]
    assert [row.id for row in await fleet.list_workers(scene.db, "bob", "", 10)] == ["w-bob"]
