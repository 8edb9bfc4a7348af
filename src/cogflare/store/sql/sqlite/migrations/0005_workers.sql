-- Inventory and requirements, limits of worker tokens, predictions in the dialect of 2022.

-- What the worker's machine has (JSON, as its hello says it), and for each of its offers what the model requires and
-- the machine has not (a JSON array of texts, empty where it may run).
ALTER TABLE workers ADD COLUMN machine TEXT NOT NULL DEFAULT '{}';
ALTER TABLE workers ADD COLUMN unmet TEXT NOT NULL DEFAULT '[]';

-- What a model requires of the workers that run it (JSON); null: nothing.
ALTER TABLE models ADD COLUMN requirements TEXT;

CREATE INDEX models_with_requirements ON models (account, owner, name) WHERE requirements IS NOT NULL;

-- What workers with this token may offer (a JSON array of owner/name; null: anything), and how many may be connected.
ALTER TABLE tokens ADD COLUMN models TEXT;
ALTER TABLE tokens ADD COLUMN max_connections INTEGER;

CREATE INDEX workers_by_token ON workers (token) WHERE state = 'online';

-- How the client that made it speaks: null is Replicate's way, '2022' that of the first Cogflare.
ALTER TABLE predictions ADD COLUMN dialect TEXT;

-- Messages tell of a creation too, to webhooks of that dialect. A check cannot be changed, so the table is made anew; the
-- trigger that writes to it would not outlive that.
DROP TRIGGER predictions_ended;
ALTER TABLE deliveries RENAME TO former_deliveries;

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

INSERT INTO deliveries (
    id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at, items,
    log_bytes
)
SELECT id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at, items,
    log_bytes
FROM former_deliveries;
DROP TABLE former_deliveries;

CREATE INDEX deliveries_due ON deliveries (host, next_try_at) WHERE state = 'pending';
CREATE INDEX deliveries_by_account ON deliveries (account, id);
CREATE INDEX deliveries_undelivered ON deliveries (account, id) WHERE state <> 'delivered';
CREATE INDEX deliveries_by_prediction ON deliveries (prediction);
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE state <> 'pending';

CREATE TRIGGER predictions_ended AFTER UPDATE OF phase ON predictions
WHEN new.phase = 'ended' AND old.phase <> 'ended' AND new.webhook IS NOT NULL
BEGIN
    INSERT INTO deliveries (id, account, prediction, event, url, host, state, next_try_at, created_at)
    VALUES ('msg_' || new.id, new.account, new.id, 'completed', new.webhook, coalesce(new.webhook_host, 'unknown'), 'pending',
        new.completed_at, new.completed_at);
END;
