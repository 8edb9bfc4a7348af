-- The schema that the migrations make. Written by tests/store/test_migrations.py; do not edit.

CREATE TABLE accounts (
    id TEXT PRIMARY KEY,
    username TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('user', 'organization', 'shared')),
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
    prediction TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    claim TEXT NOT NULL,
    queue TEXT NOT NULL,
    flow TEXT NOT NULL,
    holder TEXT NOT NULL,
    link_epoch INTEGER NOT NULL,
    renewals INTEGER NOT NULL DEFAULT 0,
    claimed_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    outcome TEXT CHECK (outcome IN ('succeeded', 'failed', 'canceled', 'lost')),
    reason TEXT,
    slot_freed_at INTEGER,
    output_items INTEGER NOT NULL DEFAULT 0,
    log_bytes INTEGER NOT NULL DEFAULT 0,
    remote_id TEXT,
    cost REAL,
    PRIMARY KEY (prediction, attempt)
) STRICT, WITHOUT ROWID;

CREATE INDEX attempts_open ON attempts (holder, claim) WHERE ended_at IS NULL OR slot_freed_at IS NULL;

CREATE TABLE budgets (
    account TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('account', 'token', 'model', 'provider')),
    ref TEXT NOT NULL,
    period TEXT NOT NULL CHECK (period IN ('day', 'month')),
    amount INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (account, scope, ref, period)
) STRICT, WITHOUT ROWID;

CREATE TABLE chunks (
    prediction TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('output', 'log', 'result')),
    position INTEGER NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (prediction, attempt, kind, position)
) STRICT;

CREATE TABLE costs (
    account TEXT NOT NULL,
    day TEXT NOT NULL,
    token TEXT NOT NULL,
    model TEXT NOT NULL,
    provider_name TEXT NOT NULL,
    runs INTEGER NOT NULL,
    unknown INTEGER NOT NULL,
    in_doubt INTEGER NOT NULL,
    run_us INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    PRIMARY KEY (account, day, token, model, provider_name)
) STRICT, WITHOUT ROWID;

CREATE INDEX costs_by_age ON costs (day);

CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    prediction TEXT NOT NULL,
    event TEXT NOT NULL CHECK (event IN ('created', 'start', 'output', 'logs', 'completed')),
    url TEXT NOT NULL,
    host TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    tries INTEGER NOT NULL DEFAULT 0,
    next_try_at INTEGER,
    give_up_at INTEGER,
    created_at INTEGER NOT NULL,
    ended_at INTEGER,
    items INTEGER,
    log_bytes INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX deliveries_due ON deliveries (host, next_try_at) WHERE state = 'pending';

CREATE INDEX deliveries_by_account ON deliveries (account, id);

CREATE INDEX deliveries_undelivered ON deliveries (account, id) WHERE state <> 'delivered';

CREATE INDEX deliveries_by_prediction ON deliveries (prediction);

CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE state <> 'pending';

CREATE TABLE delivery_tries (
    delivery TEXT NOT NULL,
    try INTEGER NOT NULL,
    at INTEGER NOT NULL,
    duration_us INTEGER NOT NULL,
    status INTEGER,
    error TEXT,
    answer TEXT,
    PRIMARY KEY (delivery, try)
) STRICT, WITHOUT ROWID;

CREATE TABLE errand_reservations (
    prediction TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    scope TEXT NOT NULL,
    ref TEXT NOT NULL,
    since TEXT NOT NULL,
    amount INTEGER NOT NULL,
    is_rest INTEGER NOT NULL,
    PRIMARY KEY (prediction, attempt, scope, ref, since)
) STRICT, WITHOUT ROWID;

CREATE TABLE errands (
    prediction TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    account TEXT NOT NULL,
    token TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    provider_name TEXT NOT NULL,
    node TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('intent', 'submitted', 'over')),
    mark TEXT NOT NULL,
    terms TEXT NOT NULL,
    decision TEXT NOT NULL,
    remote_id TEXT,
    is_refused INTEGER NOT NULL DEFAULT 0,
    is_in_doubt INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    submitted_at INTEGER,
    ended_at INTEGER,
    run_us INTEGER,
    reserved INTEGER NOT NULL,
    cost INTEGER,
    PRIMARY KEY (prediction, attempt)
) STRICT, WITHOUT ROWID;

CREATE INDEX errands_open ON errands (account, provider) WHERE state <> 'over';

CREATE INDEX errands_by_model ON errands (account, provider, model, created_at);

CREATE UNIQUE INDEX errands_by_mark ON errands (mark);

CREATE TABLE file_uses (
    file TEXT NOT NULL,
    prediction TEXT NOT NULL,
    PRIMARY KEY (file, prediction)
) STRICT, WITHOUT ROWID;

CREATE INDEX file_uses_by_prediction ON file_uses (prediction);

CREATE TABLE files (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    purpose TEXT NOT NULL CHECK (purpose IN ('output', 'input')),
    prediction TEXT,
    attempt INTEGER,
    name TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size INTEGER,
    sha256 TEXT,
    md5 TEXT,
    metadata TEXT,
    state TEXT NOT NULL CHECK (state IN ('pending', 'bound', 'expired')),
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX files_by_attempt ON files (prediction, attempt) WHERE prediction IS NOT NULL;

CREATE INDEX files_pending ON files (created_at) WHERE state = 'pending';

CREATE INDEX files_expired ON files (id) WHERE state = 'expired';

CREATE INDEX files_by_account ON files (account, id) WHERE purpose = 'input' AND prediction IS NULL;

CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL AND state <> 'expired';

CREATE TABLE flows (
    queue TEXT NOT NULL,
    flow TEXT NOT NULL,
    waiting INTEGER NOT NULL,
    virtual_time INTEGER NOT NULL,
    PRIMARY KEY (queue, flow)
) STRICT, WITHOUT ROWID;

CREATE INDEX flows_waiting ON flows (queue, virtual_time) WHERE waiting > 0;

CREATE INDEX flows_by_time ON flows (queue, virtual_time);

CREATE INDEX flows_by_flow ON flows (flow) WHERE waiting > 0;

CREATE TABLE idempotency (
    account TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('key', 'retry')),
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    prediction TEXT NOT NULL,
    attached INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (account, kind, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_fingerprint ON idempotency (account, fingerprint, key, attached, created_at)
WHERE kind = 'retry';

CREATE INDEX idempotency_by_age ON idempotency (kind, created_at);

CREATE TABLE inputs (
    prediction TEXT NOT NULL,
    part INTEGER NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (prediction, part)
) STRICT;

CREATE TABLE models (
    account TEXT NOT NULL REFERENCES accounts (id),
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    latest_version TEXT,
    rerun INTEGER NOT NULL DEFAULT 0,
    run_count INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, run_limit_s REAL, start_limit_s REAL, max_queued INTEGER, requirements TEXT,
    PRIMARY KEY (account, owner, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX models_with_requirements ON models (account, owner, name) WHERE requirements IS NOT NULL;

CREATE TABLE nodes (
    node TEXT PRIMARY KEY,
    beats INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE predictions (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    token TEXT NOT NULL,
    catalog TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    pinned INTEGER NOT NULL,
    flow TEXT NOT NULL,
    priority INTEGER NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('queued', 'parked', 'assigned', 'running', 'ended')),
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    strikes INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    completed_at INTEGER,
    deadline INTEGER,
    input TEXT,
    output TEXT,
    output_items INTEGER,
    output_bytes INTEGER,
    logs TEXT,
    log_bytes INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    metrics TEXT,
    webhook TEXT,
    webhook_events TEXT,
    stream_key TEXT NOT NULL,
    data_removed INTEGER NOT NULL DEFAULT 0
, client_id TEXT, run_limit_s REAL, start_by INTEGER, struck_out INTEGER NOT NULL DEFAULT 0, requeued_as TEXT, webhook_host TEXT, webhook_origin TEXT, routed INTEGER NOT NULL DEFAULT 0, route TEXT, hops INTEGER NOT NULL DEFAULT 0, dialect TEXT) STRICT;

CREATE INDEX predictions_by_account ON predictions (account, id);

CREATE INDEX predictions_by_status ON predictions (account, status, id);

CREATE INDEX predictions_by_model ON predictions (account, model, id);

CREATE UNIQUE INDEX predictions_by_client_id ON predictions (account, client_id) WHERE client_id IS NOT NULL;

CREATE INDEX predictions_by_deadline ON predictions (deadline) WHERE deadline IS NOT NULL AND phase <> 'ended';

CREATE INDEX predictions_by_start ON predictions (start_by)
WHERE start_by IS NOT NULL AND started_at IS NULL AND phase <> 'ended';

CREATE INDEX predictions_struck_out ON predictions (account, id) WHERE struck_out = 1;

CREATE INDEX predictions_with_data ON predictions (completed_at) WHERE phase = 'ended' AND data_removed < 2;

CREATE INDEX predictions_routed ON predictions (account, model, id) WHERE routed = 1 AND phase = 'queued';

CREATE TABLE providers (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('replicate', 'cogflare', 'runpod')),
    base_url TEXT NOT NULL,
    sealed TEXT NOT NULL,
    hint TEXT NOT NULL,
    settings TEXT NOT NULL,
    paused_until INTEGER,
    pause_reason TEXT,
    created_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX providers_by_name ON providers (account, name);

CREATE TABLE queue_entries (
    prediction TEXT NOT NULL,
    queue TEXT NOT NULL,
    flow TEXT NOT NULL,
    priority INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    not_before INTEGER,
    avoid_worker TEXT,
    avoid_until INTEGER,
    PRIMARY KEY (prediction, queue)
) STRICT, WITHOUT ROWID;

CREATE INDEX queue_entries_ready ON queue_entries (queue, flow, priority, rank, prediction) WHERE not_before IS NULL;

CREATE INDEX queue_entries_parked ON queue_entries (not_before) WHERE not_before IS NOT NULL;

CREATE TABLE routes (
    account TEXT NOT NULL,
    model TEXT NOT NULL,
    policy TEXT NOT NULL,
    routed INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (account, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_times (
    catalog TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    gpu TEXT NOT NULL,
    samples TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (catalog, model, version, gpu)
) STRICT, WITHOUT ROWID;

CREATE INDEX run_times_by_age ON run_times (changed_at);

CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY);

CREATE TABLE secrets (
    account TEXT NOT NULL,
    purpose TEXT NOT NULL CHECK (purpose IN ('webhooks', 'files')),
    id TEXT NOT NULL,
    sealed TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (account, purpose, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE spending (
    account TEXT NOT NULL,
    scope TEXT NOT NULL,
    ref TEXT NOT NULL,
    since TEXT NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (account, scope, ref, since)
) STRICT, WITHOUT ROWID;

CREATE INDEX spending_by_age ON spending (since);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts (id),
    kind TEXT NOT NULL CHECK (kind IN ('admin', 'api', 'worker')),
    name TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    hint TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
, models TEXT, max_connections INTEGER) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_by_account ON tokens (account, id);

CREATE TABLE usage (
    account TEXT NOT NULL,
    model TEXT NOT NULL,
    day TEXT NOT NULL,
    runs INTEGER NOT NULL,
    run_us INTEGER NOT NULL,
    PRIMARY KEY (account, day, model)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_by_age ON usage (day);

CREATE TABLE vault (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    fingerprint TEXT NOT NULL
) STRICT;

CREATE TABLE versions (
    account TEXT NOT NULL,
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    cog_version TEXT NOT NULL,
    schema TEXT,
    output_kind TEXT NOT NULL CHECK (output_kind IN ('single', 'iterator', 'text')),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (account, id, owner, name),
    FOREIGN KEY (account, owner, name) REFERENCES models (account, owner, name)
) STRICT;

CREATE INDEX versions_by_model ON versions (account, owner, name, created_at);

CREATE TABLE workers (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts (id),
    token TEXT NOT NULL,
    name TEXT NOT NULL,
    instance TEXT NOT NULL,
    node TEXT NOT NULL,
    link_epoch INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('online', 'away', 'offline')),
    offers TEXT NOT NULL,
    agent TEXT NOT NULL,
    connected_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
, losses INTEGER NOT NULL DEFAULT 0, quarantines INTEGER NOT NULL DEFAULT 0, quarantine TEXT, quarantined_at INTEGER, lost_at INTEGER, setup_since INTEGER, machine TEXT NOT NULL DEFAULT '{}', unmet TEXT NOT NULL DEFAULT '[]') STRICT, WITHOUT ROWID;

CREATE INDEX workers_by_account ON workers (account, id);

CREATE INDEX workers_quarantined ON workers (id) WHERE quarantine IS NOT NULL;

CREATE INDEX workers_by_token ON workers (token) WHERE state = 'online';

CREATE TRIGGER predictions_ended AFTER UPDATE OF phase ON predictions
WHEN new.phase = 'ended' AND old.phase <> 'ended' AND new.webhook IS NOT NULL
BEGIN
    INSERT INTO deliveries (id, account, prediction, event, url, host, state, next_try_at, created_at)
    VALUES ('msg_' || new.id, new.account, new.id, 'completed', new.webhook, coalesce(new.webhook_host, 'unknown'), 'pending',
        new.completed_at, new.completed_at);
END;

CREATE TRIGGER queue_entries_added AFTER INSERT ON queue_entries WHEN new.not_before IS NULL
BEGIN
    INSERT INTO flows (queue, flow, waiting, virtual_time)
    VALUES (new.queue, new.flow, 1, coalesce(
        (SELECT min(virtual_time) FROM flows WHERE queue = new.queue AND waiting > 0),
        (SELECT max(virtual_time) FROM flows WHERE queue = new.queue),
        0))
    ON CONFLICT (queue, flow) DO UPDATE SET
        waiting = flows.waiting + 1,
        virtual_time = CASE WHEN flows.waiting > 0 THEN flows.virtual_time
                            ELSE max(flows.virtual_time, excluded.virtual_time) END;
END;

CREATE TRIGGER queue_entries_removed AFTER DELETE ON queue_entries WHEN old.not_before IS NULL
BEGIN
    UPDATE flows SET waiting = waiting - 1 WHERE queue = old.queue AND flow = old.flow;
END;

CREATE TRIGGER queue_entries_held AFTER UPDATE OF not_before ON queue_entries
WHEN old.not_before IS NULL AND new.not_before IS NOT NULL
BEGIN
    UPDATE flows SET waiting = waiting - 1 WHERE queue = old.queue AND flow = old.flow;
END;

CREATE TRIGGER queue_entries_released AFTER UPDATE OF not_before ON queue_entries
WHEN old.not_before IS NOT NULL AND new.not_before IS NULL
BEGIN
    INSERT INTO flows (queue, flow, waiting, virtual_time)
    VALUES (new.queue, new.flow, 1, coalesce(
        (SELECT min(virtual_time) FROM flows WHERE queue = new.queue AND waiting > 0),
        (SELECT max(virtual_time) FROM flows WHERE queue = new.queue),
        0))
    ON CONFLICT (queue, flow) DO UPDATE SET
        waiting = flows.waiting + 1,
        virtual_time = CASE WHEN flows.waiting > 0 THEN flows.virtual_time
                            ELSE max(flows.virtual_time, excluded.virtual_time) END;
END;
