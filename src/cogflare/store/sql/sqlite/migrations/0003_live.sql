-- Webhooks, secrets of accounts, input files.

-- Of a prediction with a webhook: the host that it goes to, with the account before it, and the origin (of the create's
-- request) for the URLs in it.
ALTER TABLE predictions ADD COLUMN webhook_host TEXT;
ALTER TABLE predictions ADD COLUMN webhook_origin TEXT;

-- One message to a webhook; its id is the `webhook-id` of every try. The one of a prediction's end is `msg_<prediction>`.
-- `next_try_at`: while pending, when it is due; while somebody tries, when others may. `give_up_at` is set by the first
-- try; one that is sent once has none to come. `items` and `log_bytes`: what a message before the end has shown.
DROP TABLE deliveries;

CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    prediction TEXT NOT NULL,
    event TEXT NOT NULL CHECK (event IN ('start', 'output', 'logs', 'completed')),
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

-- What came of each try. `status` is null where there was no answer; `answer` is the beginning of its body.
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

-- The outbox: whatever ends a prediction writes the message about it in the same unit, so that no path forgets. Where
-- its filter leaves the end out, it stands for what is still to be told before that.
CREATE TRIGGER predictions_ended AFTER UPDATE OF phase ON predictions
WHEN new.phase = 'ended' AND old.phase <> 'ended' AND new.webhook IS NOT NULL
BEGIN
    INSERT INTO deliveries (id, account, prediction, event, url, host, state, next_try_at, created_at)
    VALUES ('msg_' || new.id, new.account, new.id, 'completed', new.webhook, coalesce(new.webhook_host, 'unknown'), 'pending',
        new.completed_at, new.completed_at);
END;

-- Secrets of accounts, sealed with the server's key. The newest of a purpose is in use; an older one counts until it
-- expires.
CREATE TABLE secrets (
    account TEXT NOT NULL,
    purpose TEXT NOT NULL CHECK (purpose IN ('webhooks', 'files')),
    id TEXT NOT NULL,
    sealed TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (account, purpose, id)
) STRICT, WITHOUT ROWID;

-- Which key the secrets are sealed with: servers that share a database need the same one.
CREATE TABLE vault (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    fingerprint TEXT NOT NULL
) STRICT;

-- A client's file that the input of a prediction names: it is kept while the prediction has not ended.
CREATE TABLE file_uses (
    file TEXT NOT NULL,
    prediction TEXT NOT NULL,
    PRIMARY KEY (file, prediction)
) STRICT, WITHOUT ROWID;

CREATE INDEX file_uses_by_prediction ON file_uses (prediction);

DROP INDEX files_by_account;
CREATE INDEX files_by_account ON files (account, id) WHERE purpose = 'input' AND prediction IS NULL;
CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL AND state <> 'expired';
