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
    id TEXT COLLATE "C" PRIMARY KEY,
    account TEXT COLLATE "C" NOT NULL,
    prediction TEXT COLLATE "C" NOT NULL,
    event TEXT COLLATE "C" NOT NULL CHECK (event IN ('start', 'output', 'logs', 'completed')),
    url TEXT NOT NULL,
    host TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    tries BIGINT NOT NULL DEFAULT 0,
    next_try_at BIGINT,
    give_up_at BIGINT,
    created_at BIGINT NOT NULL,
    ended_at BIGINT,
    items BIGINT,
    log_bytes BIGINT
);

CREATE INDEX deliveries_due ON deliveries (host, next_try_at) WHERE state = 'pending';
CREATE INDEX deliveries_by_account ON deliveries (account, id);
CREATE INDEX deliveries_undelivered ON deliveries (account, id) WHERE state <> 'delivered';
CREATE INDEX deliveries_by_prediction ON deliveries (prediction);
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE state <> 'pending';

-- What came of each try. `status` is null where there was no answer; `answer` is the beginning of its body.
CREATE TABLE delivery_tries (
    delivery TEXT COLLATE "C" NOT NULL,
    try BIGINT NOT NULL,
    at BIGINT NOT NULL,
    duration_us BIGINT NOT NULL,
    status BIGINT,
    error TEXT,
    answer TEXT,
    PRIMARY KEY (delivery, try)
);

-- The outbox: whatever ends a prediction writes the message about it in the same unit, so that no path forgets. Where
-- its filter leaves the end out, it stands for what is still to be told before that.
CREATE FUNCTION prediction_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deliveries (id, account, prediction, event, url, host, state, next_try_at, created_at)
    VALUES ('msg_' || new.id, new.account, new.id, 'completed', new.webhook, coalesce(new.webhook_host, 'unknown'), 'pending',
        new.completed_at, new.completed_at);
    RETURN NULL;
END;
$$;

CREATE TRIGGER predictions_ended AFTER UPDATE OF phase ON predictions
FOR EACH ROW WHEN (new.phase = 'ended' AND old.phase <> 'ended' AND new.webhook IS NOT NULL)
EXECUTE FUNCTION prediction_ended();

-- Secrets of accounts, sealed with the server's key. The newest of a purpose is in use; an older one counts until it
-- expires.
CREATE TABLE secrets (
    account TEXT COLLATE "C" NOT NULL,
    purpose TEXT COLLATE "C" NOT NULL CHECK (purpose IN ('webhooks', 'files')),
    id TEXT COLLATE "C" NOT NULL,
    sealed TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (account, purpose, id)
);

-- Which key the secrets are sealed with: servers that share a database need the same one.
CREATE TABLE vault (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    fingerprint TEXT NOT NULL
);

-- A client's file that the input of a prediction names: it is kept while the prediction has not ended.
CREATE TABLE file_uses (
    file TEXT COLLATE "C" NOT NULL,
    prediction TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (file, prediction)
);

CREATE INDEX file_uses_by_prediction ON file_uses (prediction);

DROP INDEX files_by_account;
CREATE INDEX files_by_account ON files (account, id) WHERE purpose = 'input' AND prediction IS NULL;
CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL AND state <> 'expired';
