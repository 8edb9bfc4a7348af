-- Creates that may be repeated: what a client named, and what a client marks as repeated.

-- name: find_key
SELECT fingerprint, prediction FROM idempotency
WHERE account = :account AND kind = 'key' AND key = :key AND created_at > :since;

-- name: keep_key
-- Returns no row if the key was used after `since`; an older use is forgotten.
INSERT INTO idempotency (account, kind, key, fingerprint, prediction, created_at)
VALUES (:account, 'key', :key, :fingerprint, :prediction, :now)
ON CONFLICT (account, kind, key) DO UPDATE SET
    fingerprint = excluded.fingerprint, prediction = excluded.prediction, created_at = excluded.created_at
WHERE idempotency.created_at <= :since
RETURNING key;

-- name: forget_key
DELETE FROM idempotency WHERE account = :account AND kind = 'key' AND key = :key AND prediction = :prediction;

-- name: keep_retry
-- A create whose client marks its repetitions; `attached` counts the create itself where that is one of them.
INSERT INTO idempotency (account, kind, key, fingerprint, prediction, attached, created_at)
VALUES (:account, 'retry', :prediction, :fingerprint, :prediction, :attached, :now);

-- name: attach_retry
-- Gives repetition number `attached` the oldest equal create that has met only earlier ones, and counts its age anew.
-- One that another repetition is just taking is passed over.
UPDATE idempotency SET attached = :attached, created_at = :now
WHERE account = :account AND kind = 'retry' AND key = (
    SELECT key FROM idempotency
    WHERE account = :account AND kind = 'retry' AND fingerprint = :fingerprint AND created_at > :since
        AND attached < :attached
    ORDER BY key LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING prediction;

-- name: prune_idempotency
-- By the places of the rows: for a join with so many keys the planner would rather read the whole table.
DELETE FROM idempotency WHERE kind = :kind AND ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency WHERE kind = :kind AND created_at <= :cutoff
    ORDER BY created_at LIMIT :limit))
RETURNING key;
