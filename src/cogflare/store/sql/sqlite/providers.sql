-- Hosted services that run predictions of an account with its own key.

-- name: put_provider
-- Writes a provider, or changes the one of that name: it keeps its id, and a pause ends. `changed_at` always grows.
INSERT INTO providers (id, account, name, kind, base_url, sealed, hint, settings, created_at, changed_at)
VALUES (:id, :account, :name, :kind, :base_url, :sealed, :hint, :settings, :created_at, :changed_at)
ON CONFLICT (account, name) DO UPDATE SET
    kind = excluded.kind, base_url = excluded.base_url, sealed = excluded.sealed, hint = excluded.hint,
    settings = excluded.settings, paused_until = NULL, pause_reason = NULL,
    changed_at = max(providers.changed_at + 1, excluded.changed_at)
RETURNING id, account, name, kind, base_url, sealed, hint, settings, paused_until, pause_reason, created_at, changed_at;

-- name: has_providers
-- Or anything that waits for one that is gone.
SELECT 1 WHERE EXISTS (SELECT 1 FROM providers)
    OR (SELECT id FROM predictions WHERE routed = 1 AND phase = 'queued' ORDER BY account, model LIMIT 1) IS NOT NULL;

-- name: get_provider
SELECT id, account, name, kind, base_url, sealed, hint, settings, paused_until, pause_reason, created_at, changed_at
FROM providers WHERE id = :id;

-- name: find_provider
SELECT id, account, name, kind, base_url, sealed, hint, settings, paused_until, pause_reason, created_at, changed_at
FROM providers WHERE account = :account AND name = :name;

-- name: list_providers
SELECT id, account, name, kind, base_url, sealed, hint, settings, paused_until, pause_reason, created_at, changed_at
FROM providers WHERE account = :account ORDER BY name;

-- name: remove_provider
-- One that still has errands stays, for they need its key.
DELETE FROM providers
WHERE account = :account AND name = :name AND NOT EXISTS (
    SELECT 1 FROM errands AS e WHERE e.account = :account AND e.provider = providers.id AND e.state <> 'over')
RETURNING id;

-- name: pause_provider
-- The longer pause stands; one that is over does not count.
UPDATE providers SET paused_until = :until, pause_reason = :reason
WHERE id = :id AND (paused_until IS NULL OR paused_until <= :now OR paused_until < :until);

-- name: resume_provider
UPDATE providers SET paused_until = NULL, pause_reason = NULL WHERE id = :id;
