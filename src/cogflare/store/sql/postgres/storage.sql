-- Whether there is room: a row that is written and removed in one unit.

-- name: write_probe
INSERT INTO idempotency (account, kind, key, fingerprint, prediction, created_at)
VALUES ('shared', 'retry', :probe, :content, '', 0)
RETURNING key;

-- name: remove_probe
DELETE FROM idempotency WHERE account = 'shared' AND kind = 'retry' AND key = :probe;
