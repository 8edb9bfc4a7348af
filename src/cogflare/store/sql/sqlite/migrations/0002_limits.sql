-- Client's own ids, limits, quarantine, retention.

-- `client_id` is the id that the client gave (PUT), unique in its account. `run_limit_s` counts from the start of the
-- attempt; `start_by` is when the prediction fails unless it has started. `struck_out`: it failed because its attempts
-- were lost, and nobody has looked after it yet; `requeued_as` is the new prediction made of it.
ALTER TABLE predictions ADD COLUMN client_id TEXT;
ALTER TABLE predictions ADD COLUMN run_limit_s REAL;
ALTER TABLE predictions ADD COLUMN start_by INTEGER;
ALTER TABLE predictions ADD COLUMN struck_out INTEGER NOT NULL DEFAULT 0;
ALTER TABLE predictions ADD COLUMN requeued_as TEXT;

CREATE UNIQUE INDEX predictions_by_client_id ON predictions (account, client_id) WHERE client_id IS NOT NULL;
CREATE INDEX predictions_by_deadline ON predictions (deadline) WHERE deadline IS NOT NULL AND phase <> 'ended';
CREATE INDEX predictions_by_start ON predictions (start_by)
WHERE start_by IS NOT NULL AND started_at IS NULL AND phase <> 'ended';
CREATE INDEX predictions_struck_out ON predictions (account, id) WHERE struck_out = 1;
-- `data_removed` 1: clients see no data any more; 2: there is none any more.
CREATE INDEX predictions_with_data ON predictions (completed_at) WHERE phase = 'ended' AND data_removed < 2;

-- What a model's owner has set; null means the server's default.
ALTER TABLE models ADD COLUMN run_limit_s REAL;
ALTER TABLE models ADD COLUMN start_limit_s REAL;
ALTER TABLE models ADD COLUMN max_queued INTEGER;

-- `losses` counts runs lost in a row, the last at `lost_at`; `quarantines` how often in a row the worker was set aside,
-- `quarantine` why it is.
ALTER TABLE workers ADD COLUMN losses INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN quarantines INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN quarantine TEXT;
ALTER TABLE workers ADD COLUMN quarantined_at INTEGER;
ALTER TABLE workers ADD COLUMN lost_at INTEGER;

CREATE INDEX workers_quarantined ON workers (id) WHERE quarantine IS NOT NULL;

-- What waits for an account, over all queues.
CREATE INDEX flows_by_flow ON flows (flow) WHERE waiting > 0;

CREATE INDEX files_expired ON files (id) WHERE state = 'expired';

-- Creates that may be repeated. `key`: the client named it (Idempotency-Key). `retry`: a client marks what it repeats
-- but gives no name; its `key` is the prediction, `attached` the number of the last repetition that met it, and
-- `created_at` moves on with each of them.
DROP TABLE idempotency;

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
