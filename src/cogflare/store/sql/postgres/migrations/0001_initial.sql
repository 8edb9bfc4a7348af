-- Times are microseconds since 1970 (UTC). JSON is text: it is handed through as it came, and `jsonb` refuses some of
-- what JSON allows (\u0000). Ids are lower-case ULIDs made by the caller. A cursor is an id, so keys compare by bytes
-- (COLLATE "C"), whatever locale the database was made with.

CREATE TABLE accounts (
    id TEXT COLLATE "C" PRIMARY KEY,
    username TEXT COLLATE "C" NOT NULL UNIQUE,
    name TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('user', 'organization', 'shared')),
    created_at BIGINT NOT NULL
);

-- The account whose models and workers every account may use.
INSERT INTO accounts (id, username, name, kind, created_at) VALUES ('shared', 'shared', 'Shared', 'shared', 0);

CREATE TABLE tokens (
    id TEXT COLLATE "C" PRIMARY KEY,
    account TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('admin', 'api', 'worker')),
    name TEXT COLLATE "C" NOT NULL,
    hash TEXT COLLATE "C" NOT NULL UNIQUE,
    hint TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE INDEX tokens_by_account ON tokens (account, id);

CREATE TABLE models (
    account TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
    owner TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    description TEXT,
    latest_version TEXT COLLATE "C",
    rerun BIGINT NOT NULL DEFAULT 0,
    run_count BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account, owner, name)
);

CREATE TABLE versions (
    account TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    cog_version TEXT NOT NULL,
    schema TEXT,
    output_kind TEXT NOT NULL CHECK (output_kind IN ('single', 'iterator', 'text')),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account, id, owner, name),
    FOREIGN KEY (account, owner, name) REFERENCES models (account, owner, name)
);

CREATE INDEX versions_by_model ON versions (account, owner, name, created_at);

CREATE TABLE workers (
    id TEXT COLLATE "C" PRIMARY KEY,
    account TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
    token TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    instance TEXT NOT NULL,
    node TEXT NOT NULL,
    link_epoch BIGINT NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('online', 'away', 'offline')),
    offers TEXT NOT NULL,
    agent TEXT NOT NULL,
    connected_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);

CREATE INDEX workers_by_account ON workers (account, id);

CREATE TABLE predictions (
    id TEXT COLLATE "C" PRIMARY KEY,
    account TEXT COLLATE "C" NOT NULL,
    token TEXT COLLATE "C" NOT NULL,
    catalog TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    version TEXT COLLATE "C" NOT NULL,
    pinned BIGINT NOT NULL,
    flow TEXT COLLATE "C" NOT NULL,
    priority BIGINT NOT NULL,
    phase TEXT COLLATE "C" NOT NULL CHECK (phase IN ('queued', 'parked', 'assigned', 'running', 'ended')),
    status TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL DEFAULT 0,
    strikes BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    completed_at BIGINT,
    deadline BIGINT,
    input TEXT,
    output TEXT,
    output_items BIGINT,
    output_bytes BIGINT,
    logs TEXT,
    log_bytes BIGINT NOT NULL DEFAULT 0,
    error TEXT,
    metrics TEXT,
    webhook TEXT,
    webhook_events TEXT,
    stream_key TEXT NOT NULL,
    data_removed BIGINT NOT NULL DEFAULT 0
);

CREATE INDEX predictions_by_account ON predictions (account, id);
CREATE INDEX predictions_by_status ON predictions (account, status, id);
CREATE INDEX predictions_by_model ON predictions (account, model, id);

-- An input that is too large for its prediction's row, in parts.
CREATE TABLE inputs (
    prediction TEXT COLLATE "C" NOT NULL,
    part BIGINT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (prediction, part)
);

-- One try of a prediction. It owns the lease (renewals), the occupancy of a slot (slot_freed_at) and the committed
-- positions of the try's live data.
CREATE TABLE attempts (
    prediction TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    claim TEXT COLLATE "C" NOT NULL,
    queue TEXT COLLATE "C" NOT NULL,
    flow TEXT COLLATE "C" NOT NULL,
    holder TEXT COLLATE "C" NOT NULL,
    link_epoch BIGINT NOT NULL,
    renewals BIGINT NOT NULL DEFAULT 0,
    claimed_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    outcome TEXT CHECK (outcome IN ('succeeded', 'failed', 'canceled', 'lost')),
    reason TEXT,
    slot_freed_at BIGINT,
    output_items BIGINT NOT NULL DEFAULT 0,
    log_bytes BIGINT NOT NULL DEFAULT 0,
    remote_id TEXT,
    cost DOUBLE PRECISION,
    PRIMARY KEY (prediction, attempt)
);

-- Whatever somebody still has to do something about: a lease to watch, or a slot to give back. A renewal touches none
-- of the indexes.
CREATE INDEX attempts_open ON attempts (holder, claim) WHERE ended_at IS NULL OR slot_freed_at IS NULL;

-- What may be claimed: one row per queue (pool and model, or pool and version) that may run the prediction.
CREATE TABLE queue_entries (
    prediction TEXT COLLATE "C" NOT NULL,
    queue TEXT COLLATE "C" NOT NULL,
    flow TEXT COLLATE "C" NOT NULL,
    priority BIGINT NOT NULL,
    rank BIGINT NOT NULL,
    not_before BIGINT,
    avoid_worker TEXT COLLATE "C",
    avoid_until BIGINT,
    PRIMARY KEY (prediction, queue)
);

CREATE INDEX queue_entries_ready ON queue_entries (queue, flow, priority, rank, prediction) WHERE not_before IS NULL;
CREATE INDEX queue_entries_parked ON queue_entries (not_before) WHERE not_before IS NOT NULL;

-- A fairness key inside a queue. `waiting` counts its ready entries; triggers alone write it, so that no path forgets.
CREATE TABLE flows (
    queue TEXT COLLATE "C" NOT NULL,
    flow TEXT COLLATE "C" NOT NULL,
    waiting BIGINT NOT NULL,
    virtual_time BIGINT NOT NULL,
    PRIMARY KEY (queue, flow)
);

CREATE INDEX flows_waiting ON flows (queue, virtual_time) WHERE waiting > 0;
CREATE INDEX flows_by_time ON flows (queue, virtual_time);

-- A flow that becomes ready starts no earlier than the queue's virtual time: the least of the waiting flows, or, where
-- none waits, the greatest that was reached. So nobody saves up turns while idle.
--
-- A transaction carries many units and so touches many flows, in any order: nodes would end in deadlocks all the time,
-- and each costs a second. So whoever changes flows holds one lock (the word "flow") until its commit.
CREATE FUNCTION flow_gains_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1718382455);
    INSERT INTO flows (queue, flow, waiting, virtual_time)
    VALUES (new.queue, new.flow, 1, coalesce(
        (SELECT min(virtual_time) FROM flows WHERE queue = new.queue AND waiting > 0),
        (SELECT max(virtual_time) FROM flows WHERE queue = new.queue),
        0))
    ON CONFLICT (queue, flow) DO UPDATE SET
        waiting = flows.waiting + 1,
        virtual_time = CASE WHEN flows.waiting > 0 THEN flows.virtual_time
                            ELSE greatest(flows.virtual_time, excluded.virtual_time) END;
    RETURN NULL;
END;
$$;

CREATE FUNCTION flow_loses_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1718382455);
    UPDATE flows SET waiting = waiting - 1 WHERE queue = old.queue AND flow = old.flow;
    RETURN NULL;
END;
$$;

CREATE TRIGGER queue_entries_added AFTER INSERT ON queue_entries
FOR EACH ROW WHEN (new.not_before IS NULL) EXECUTE FUNCTION flow_gains_entry();

CREATE TRIGGER queue_entries_removed AFTER DELETE ON queue_entries
FOR EACH ROW WHEN (old.not_before IS NULL) EXECUTE FUNCTION flow_loses_entry();

CREATE TRIGGER queue_entries_held AFTER UPDATE OF not_before ON queue_entries
FOR EACH ROW WHEN (old.not_before IS NULL AND new.not_before IS NOT NULL) EXECUTE FUNCTION flow_loses_entry();

CREATE TRIGGER queue_entries_released AFTER UPDATE OF not_before ON queue_entries
FOR EACH ROW WHEN (old.not_before IS NOT NULL AND new.not_before IS NULL) EXECUTE FUNCTION flow_gains_entry();

-- Live data of an attempt, append-only, about 256 KB a row. `position` counts items (output) or bytes (others).
CREATE TABLE chunks (
    prediction TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('output', 'log', 'result')),
    position BIGINT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (prediction, attempt, kind, position)
);

CREATE TABLE files (
    id TEXT COLLATE "C" PRIMARY KEY,
    account TEXT COLLATE "C" NOT NULL,
    purpose TEXT COLLATE "C" NOT NULL CHECK (purpose IN ('output', 'input')),
    prediction TEXT COLLATE "C",
    attempt BIGINT,
    name TEXT COLLATE "C" NOT NULL,
    content_type TEXT NOT NULL,
    size BIGINT,
    sha256 TEXT,
    md5 TEXT,
    metadata TEXT,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('pending', 'bound', 'expired')),
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

CREATE INDEX files_by_attempt ON files (prediction, attempt) WHERE prediction IS NOT NULL;
CREATE INDEX files_by_account ON files (account, id) WHERE purpose = 'input';
CREATE INDEX files_pending ON files (created_at) WHERE state = 'pending';

CREATE TABLE idempotency (
    account TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT NOT NULL,
    prediction TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account, key)
);

CREATE INDEX idempotency_by_age ON idempotency (created_at);

CREATE TABLE deliveries (
    id TEXT COLLATE "C" PRIMARY KEY,
    account TEXT COLLATE "C" NOT NULL,
    prediction TEXT COLLATE "C" NOT NULL,
    event TEXT NOT NULL CHECK (event IN ('start', 'output', 'logs', 'completed')),
    url TEXT NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    tries BIGINT NOT NULL DEFAULT 0,
    next_try_at BIGINT,
    last_status BIGINT,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    ended_at BIGINT
);

CREATE INDEX deliveries_due ON deliveries (next_try_at) WHERE state = 'pending';
CREATE INDEX deliveries_by_prediction ON deliveries (prediction);
