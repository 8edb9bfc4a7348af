"""No statement walks through a table that grows, and choosing the next job costs the same however many wait."""

import json
import re
from collections.abc import Sequence
from typing import Any

import apsw
import pytest

from cogflare.store import predictions
from cogflare.store.predictions import FAR_FUTURE
from cogflare.store.sql import Library, package_folder
from store.scene import OTHER_QUEUE, QUEUE, Rows, Scene

pytestmark = pytest.mark.anyio

GROWING = (
    "predictions|queue_entries|attempts|inputs|chunks|files|idempotency|deliveries|delivery_tries|tokens|versions|flows"
    "|errands|errand_reservations|spending|costs|usage|run_times"
)
LIBRARIES = {dialect: Library(package_folder(), dialect) for dialect in ("sqlite", "postgres")}

# Statements that look at all of something small: what is open, who waits.
WHOLE = {
    "live_attempts": "attempts_open",
    "occupied_slots": "attempts_open",
    "ready_queues": "flows_waiting",
    "running_attempts": "attempts_open",
    "open_errands": "errands_open",
    "insert_unnamed_file": "attempts_open",
    "files_of_2022": "attempts_open",
    "running_of_2022": "attempts_open",
    # The first of all.
    "waiting_routes": "predictions_routed",
    "has_providers": "predictions_routed",
    # All accounts.
    "costs": "accounts",
    "used": "accounts",
}
# Of people, not of machines.
RARE = {"count_admins", "list_tokens"}

# The first page of a list that has many, in SQL.
PAGE = {
    "account": "'f1'",
    "before": "'~'",
    "after": "''",
    "created_from": "0",
    "created_to": str(FAR_FUTURE),
    "limit": "10",
}

FILTERS = {
    "list_predictions_by_status": {"status": "'starting'"},
    "list_predictions_by_model": {"model": "'o/m11'"},
    "list_uploads": {"now": "0"},
    "list_uploads_upwards": {"now": "0"},
    "list_deliveries_of": {"prediction": "'e11'"},
    "list_undelivered": {"state": "'failed'"},
}

SERIES = {
    "sqlite": "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) ",
    "postgres": "WITH s (n) AS (SELECT generate_series(1, {count})) ",
}


def series(rows: Rows, insert: str, count: int) -> str:
    """Return an INSERT of rows numbered from 1; `insert` selects from `s (n)`."""
    table, select = insert.split(" SELECT ", 1)
    return f"{table} {SERIES[rows.dialect].format(count=count)} SELECT {select}"


async def fill(scene: Scene, *, queued: int, ended: int) -> None:
    """Write many predictions straight into the tables: `queued` that wait in one queue, and `ended` ones."""
    rows = scene.rows
    columns = "id, account, token, catalog, model, version, pinned, flow, priority, phase, status, attempt, created_at"
    same = "'t', 'shared', 'o/m' || n % 50, 'v', 0, 'f' || n % 20, 0"
    data = "'{\"prompt\": \"some words\"}', 'k'"
    for prefix, phase, status, attempt, count in (
        ("q", "queued", "starting", 0, queued),
        ("e", "ended", "succeeded", 1, ended),
    ):
        await rows.run(
            series(
                rows,
                f"INSERT INTO predictions ({columns}, input, stream_key) SELECT '{prefix}' || (1000000 + n),"
                f" 'f' || n % 20, {same}, '{phase}', '{status}', {attempt}, n, {data} FROM s",
                count,
            )
        )
    if rows.dialect == "postgres":
        # One update of a flow for each of so many entries, all in one transaction, is not what happens in life.
        await rows.run("ALTER TABLE queue_entries DISABLE TRIGGER USER")
    await rows.run(
        "INSERT INTO queue_entries (prediction, queue, flow, priority, rank)"
        f" SELECT id, '{QUEUE}', flow, priority, created_at FROM predictions WHERE phase = 'queued'"
    )
    if rows.dialect == "postgres":
        await rows.run("ALTER TABLE queue_entries ENABLE TRIGGER USER")
        await rows.run(
            "INSERT INTO flows (queue, flow, waiting, virtual_time)"
            " SELECT queue, flow, count(*), 0 FROM queue_entries GROUP BY queue, flow"
        )
    await rows.run(
        "INSERT INTO attempts (prediction, attempt, claim, queue, flow, holder, link_epoch, claimed_at, ended_at,"
        f" outcome, slot_freed_at) SELECT id, 1, id, '{QUEUE}', flow, 'w1', 1, 1, 2, 'succeeded', 2"
        " FROM predictions WHERE phase = 'ended'"
    )


async def fill_the_rest(scene: Scene, count: int) -> None:
    """Give the other tables enough rows that a plan which walks through one of them would show."""
    large = "x" * 500
    for insert in (
        "INSERT INTO accounts SELECT 'a' || n, 'user' || n, 'x', 'user', n FROM s",
        "INSERT INTO tokens (id, account, kind, name, hash, hint, created_at, max_connections)"
        " SELECT 't' || n, 'a' || n, 'worker', 'x', 'hash' || n, 'cfw', n, 5 FROM s",
        "INSERT INTO models (account, owner, name, created_at) SELECT 'a' || n, 'o', 'm', n FROM s",
        "INSERT INTO versions SELECT 'a' || n, 'v', 'o', 'm', 'c', NULL, 'single', n FROM s",
        "INSERT INTO workers (id, account, token, name, instance, node, link_epoch, state, offers, agent, connected_at,"
        " changed_at) SELECT 'w' || n, 'a' || n, 't', 'x', 'i', 'n', 1, 'away', '', '', n, n FROM s",
        "INSERT INTO flows SELECT 'other' || n % 100, 'f' || n, CASE n % 50 WHEN 0 THEN 1 ELSE 0 END, n FROM s",
        f"INSERT INTO inputs SELECT 'e' || n, 0, '{large}' FROM s",
        f"INSERT INTO chunks SELECT 'e' || n, 1, 'log', 0, '{large}' FROM s",
        "INSERT INTO files (id, account, purpose, prediction, attempt, name, content_type, state, created_at)"
        " SELECT 'f' || n, 'a', 'output', 'e' || n, 1, 'x', 'x', 'bound', n FROM s",
        "INSERT INTO idempotency (account, kind, key, fingerprint, prediction, created_at)"
        " SELECT 'a' || (n % 5), CASE n % 2 WHEN 0 THEN 'key' ELSE 'retry' END, 'k' || n, 'f' || n, 'e' || n, n FROM s",
        "INSERT INTO deliveries (id, account, prediction, event, url, host, state, created_at)"
        f" SELECT 'd' || n, 'f' || n % 20, 'e' || n, 'completed', '{large}', 'h' || (n % 100),"
        " CASE n % 10 WHEN 0 THEN 'pending' ELSE 'delivered' END, n FROM s",
        f"INSERT INTO delivery_tries SELECT 'd' || n, 1, n, 1, 200, NULL, '{large}' FROM s",
        "INSERT INTO predictions (id, account, token, catalog, model, version, pinned, flow, priority, phase, status,"
        " created_at, stream_key, routed) SELECT 'r' || (1000000 + n), 'a' || n % 20, 't', 'shared', 'o/m' || n % 5,"
        " 'v', 0, 'f', 0, 'queued', 'starting', n, 'k', 1 FROM s",
        "INSERT INTO providers (id, account, name, kind, base_url, sealed, hint, settings, created_at, changed_at)"
        " SELECT 'p' || n, 'a' || n, 'x', 'replicate', '', '', '', '', n, n FROM s",
        "INSERT INTO errands (prediction, attempt, account, token, model, provider, provider_name, node, epoch, state,"
        " mark, terms, decision, created_at, reserved) SELECT 'e' || (1000000 + n), 1, 'a' || n % 100, 't', 'o/m',"
        " 'p' || n % 100, 'x', 'n', 1, CASE n % 50 WHEN 0 THEN 'submitted' ELSE 'over' END, 'm' || n, '{}', '{}', n, 0"
        " FROM s",
        "INSERT INTO errand_reservations SELECT 'e' || (1000000 + n), 1, 'account', '', '2026', 1, 0 FROM s",
        "INSERT INTO spending SELECT 'a' || n % 100, 'account', 'r' || n, '2026-' || n % 300, 1 FROM s",
        "INSERT INTO costs SELECT 'a' || n % 100, '2026-' || n % 300, 't', 'o/m' || n, 'x', 1, 0, 0, 1, 1 FROM s",
        "INSERT INTO usage SELECT 'a' || n % 100, 'o/m' || n, '2026-' || n % 300, 1, 1 FROM s",
        "INSERT INTO run_times SELECT 'a', 'o/m' || n, 'v', '', '[]', n FROM s",
    ):
        await scene.rows.run(series(scene.rows, insert, count))
    await scene.rows.run("ANALYZE")


def walks(dialect: str, plan: str) -> list[str]:
    """Return the steps of a plan that read a growing table from end to end."""
    if dialect == "postgres":
        return re.findall(rf"Seq Scan on (?:{GROWING})\b.*", plan)
    return re.findall(rf"SCAN (?:{GROWING}|[a-z])\b(?! USING \w+ FUNCTION| VIRTUAL).*", plan)


async def plan_of(rows: Rows, name: str) -> str:
    """Return the plan of a statement: on PostgreSQL that for unknown values, or for a usual page as reads have it."""
    query = LIBRARIES[rows.dialect].query(name)
    if rows.dialect == "sqlite":
        steps = await rows.fetch(f"EXPLAIN QUERY PLAN {query.sql}", *[None] * len(query.params))
        return "\n".join(str(step[3]) for step in steps)
    mode = "force_custom_plan" if name.startswith("list_") else "force_generic_plan"
    await rows.run(f"SET plan_cache_mode = {mode}; PREPARE planned AS {query.sql}")
    page = {**PAGE, **FILTERS.get(name, {})}
    values = ", ".join(page.get(param, "NULL") for param in query.params)
    plan = await rows.fetch(f"EXPLAIN EXECUTE planned{f'({values})' if values else ''}")
    await rows.run("DEALLOCATE planned")
    return "\n".join(step[0] for step in plan)


@pytest.fixture(scope="session")
def known() -> dict[str, dict[str, str]]:
    return {}


@pytest.fixture
async def plans(scene: Scene, known: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the plan of every statement, in a database with many rows."""
    dialect = scene.rows.dialect
    if dialect not in known:
        await fill(scene, queued=2000, ended=30_000)
        await fill_the_rest(scene, 10_000)
        known[dialect] = {name: await plan_of(scene.rows, name) for name in LIBRARIES[dialect].queries}
    return known[dialect]


async def test_no_statement_walks_through_a_growing_table(scene: Scene, plans: dict[str, str]) -> None:
    found = {}
    for name in plans.keys() - RARE:
        steps = [step for step in walks(scene.rows.dialect, plans[name]) if WHOLE.get(name, "none") not in step]
        if steps:
            found[name] = steps
    assert found == {}


async def test_statements_use_the_index_made_for_them(plans: dict[str, str]) -> None:
    indexes = {
        "claim_attempt": ("flows_waiting", "queue_entries_ready"),
        "assign_claimed": ("attempts_open",),
        "live_attempts": ("attempts_open",),
        "live_of": ("attempts_open",),
        "occupied_slots": ("attempts_open",),
        "token_has_room": ("workers_by_token",),
        "get_token": ("workers_by_token",),
        "insert_output_file": ("files_by_attempt",),
        "list_predictions": ("predictions_by_account",),
        "list_predictions_upwards": ("predictions_by_account",),
        "list_predictions_by_status": ("predictions_by_status",),
        "list_predictions_by_model": ("predictions_by_model",),
        "list_struck_out": ("predictions_struck_out",),
        "list_struck_out_upwards": ("predictions_struck_out",),
        "next_release": ("queue_entries_parked",),
        "due_entries": ("queue_entries_parked",),
        "quarantined_workers": ("workers_quarantined",),
        "bind_files": ("files_by_attempt",),
        "insert_prediction": ("flows_by_flow", "flows_waiting"),
        "get_client_prediction": ("predictions_by_client_id",),
        "due_predictions": ("predictions_by_deadline", "predictions_by_start"),
        "live_predictions": ("predictions_by_status",),
        "waiting_entries": ("flows_by_flow",),
        "attach_retry": ("idempotency_by_fingerprint",),
        "prune_idempotency": ("idempotency_by_age",),
        "prunable_data": ("predictions_with_data",),
        "expire_files": ("files_by_attempt",),
        "expire_unbound_files": ("files_pending",),
        "expire_uploads": ("files_expiring",),
        "list_uploads": ("files_by_account",),
        "list_uploads_upwards": ("files_by_account",),
        "expired_files": ("files_expired",),
        "ready_queues": ("flows_",),
        "waiting_hosts": ("deliveries_due",),
        "hurry_deliveries": ("deliveries_due",),
        "claim_deliveries": ("deliveries_due", "deliveries_by_prediction"),
        "announced": ("deliveries_by_prediction",),
        "list_deliveries_of": ("deliveries_by_prediction",),
        "list_deliveries": ("deliveries_by_account",),
        "list_undelivered": ("deliveries_undelivered",),
        "old_deliveries": ("deliveries_ended",),
        "waiting_routes": ("predictions_routed",),
        "candidates": ("predictions_routed",),
        "mark_routed": ("predictions_by_status",),
        "running_attempts": ("attempts_open",),
        "fleet_of": ("workers_by_account", "attempts_open"),
        "model_requirements": ("models_with_requirements",),
        "workers_with_model": ("workers_by_account",),
        "waiting_flows": ("flows_waiting",),
        "entries_ahead": ("queue_entries_ready",),
        "open_errands": ("errands_open",),
        "open_errand_counts": ("errands_open",),
        "errand_room": ("errands_open",),
        "remove_provider": ("providers_by_name", "errands_open"),
        "errand_by_mark": ("errands_by_mark",),
        "provider_waits": ("errands_by_model",),
        "dearest": ("errands_by_model",),
        "prune_spending": ("spending_by_age",),
        "prune_costs": ("costs_by_age",),
        "prune_usage": ("usage_by_age",),
        "prune_run_times": ("run_times_by_age",),
    }
    missing = {name: plans[name] for name, used in indexes.items() if not all(index in plans[name] for index in used)}
    assert missing == {}


async def test_pages_are_not_sorted(plans: dict[str, str]) -> None:
    pages = {name: plan for name, plan in plans.items() if name.startswith("list_predictions")}
    assert len(pages) == 4
    assert {name: plan for name, plan in pages.items() if "Sort" in plan or "TEMP B-TREE" in plan} == {}


async def cost_of_a_claim(scene: Scene) -> int:
    """Return the work of one claim: steps of SQLite's machine, or pages that PostgreSQL looked at. Changes nothing."""
    wish = predictions.claim(scene.wish(queues=(QUEUE, OTHER_QUEUE)), scene.tick())[0]
    step = LIBRARIES[scene.rows.dialect].step(wish)
    if scene.rows.dialect == "sqlite":
        return _sqlite_steps(scene.rows, step.sql, step.values)
    shown = (f"'{value}'" if isinstance(value, str) else str(value) for value in step.values)
    literals = ", ".join("NULL" if value == "None" else value for value in shown)
    await scene.rows.run(f"BEGIN; SET LOCAL plan_cache_mode = force_generic_plan; PREPARE claim AS {step.sql}")
    ((report,),) = await scene.rows.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE claim ({literals})")
    await scene.rows.run("ROLLBACK; DEALLOCATE claim")
    plan: dict[str, Any] = json.loads(report)[0]["Plan"]
    assert plan["Actual Rows"] == 1
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def _sqlite_steps(rows: Rows, sql: str, values: Sequence[object]) -> int:
    connection = rows.sqlite()
    steps: list[int] = []

    def trace(event: dict[str, Any]) -> None:
        steps.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"])

    connection.execute("BEGIN")
    connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, trace)
    assert len(connection.execute(sql, values).fetchall()) == 1
    connection.trace_v2(0, None)
    connection.execute("ROLLBACK")
    return steps[0]


@pytest.fixture(scope="session")
def costs() -> dict[tuple[str, int], int]:
    return {}


@pytest.mark.parametrize("queued", [100, 100_000])
async def test_a_claim_costs_the_same_however_many_wait(
    scene: Scene, queued: int, costs: dict[tuple[str, int], int]
) -> None:
    await scene.link("w1")
    await fill(scene, queued=queued, ended=10)
    await scene.rows.run("ANALYZE")
    await cost_of_a_claim(scene)
    cost = costs[scene.rows.dialect, queued] = await cost_of_a_claim(scene)
    assert cost < (400 if scene.rows.dialect == "sqlite" else 100)
    # Trees of 100,000 entries are one or two pages higher than trees of 100.
    if (few := costs.get((scene.rows.dialect, 100))) is not None:
        assert cost <= (few if scene.rows.dialect == "sqlite" else few + 20)
