-- Secrets of accounts, sealed, and the fingerprint of the key they are sealed with.

-- name: find_secrets
-- The one in use first, then the one that still counts beside it.
SELECT id, sealed, created_at, expires_at FROM secrets
WHERE account = :account AND purpose = :purpose AND (expires_at IS NULL OR expires_at > :now)
ORDER BY id DESC;

-- name: insert_secret
INSERT INTO secrets (account, purpose, id, sealed, created_at)
VALUES (:account, :purpose, :id, :sealed, :now)
ON CONFLICT (account, purpose, id) DO NOTHING;

-- name: retire_secret
UPDATE secrets SET expires_at = :expires_at
WHERE account = :account AND purpose = :purpose AND id = :id AND expires_at IS NULL RETURNING id;

-- name: remove_older_secrets
DELETE FROM secrets WHERE account = :account AND purpose = :purpose AND id < :kept;

-- name: get_fingerprint
SELECT fingerprint FROM vault WHERE id = 1;

-- name: set_fingerprint
INSERT INTO vault (id, fingerprint) VALUES (1, :fingerprint) ON CONFLICT (id) DO NOTHING;

-- name: remove_secrets
DELETE FROM secrets RETURNING id;

-- name: remove_fingerprint
DELETE FROM vault;

-- name: remove_provider_keys
-- Nothing goes to a provider without its key, until somebody gives it again.
UPDATE providers SET
    sealed = '', hint = '', changed_at = changed_at + 1, paused_until = 9007199254740991,
    pause_reason = 'its key was sealed with a secret_key of the server that is lost: give it again'
RETURNING id;
