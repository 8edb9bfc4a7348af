-- Accounts and tokens; models and versions.

-- name: insert_account
INSERT INTO accounts (id, username, name, kind, created_at) VALUES (:id, :username, :name, :kind, :now)
ON CONFLICT (username) DO NOTHING;

-- name: get_account
SELECT id, username, name, kind FROM accounts WHERE id = :id;

-- name: find_account
SELECT id, username, name, kind FROM accounts WHERE username = :username;

-- name: insert_token
-- Returns a row when the token is new; the same hash again changes nothing.
INSERT INTO tokens (id, account, kind, name, hash, hint, created_at, expires_at, models, max_connections)
SELECT :id, id, :kind, :name, :hash, :hint, :now, :expires_at, :models, :max_connections FROM accounts WHERE username = :username
ON CONFLICT (hash) DO NOTHING RETURNING id;

-- name: find_token
SELECT t.id, t.account, t.kind, t.expires_at, a.username, a.name, a.kind, t.models
FROM tokens AS t JOIN accounts AS a ON a.id = t.account
WHERE t.hash = :hash AND t.revoked_at IS NULL;

-- name: token_is_valid
SELECT 1 FROM tokens WHERE id = :id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :now);

-- name: token_of_account
SELECT 1 FROM tokens WHERE id = :id AND account = :account;

-- name: list_tokens
SELECT t.id, a.username, t.kind, t.name, t.hint, t.created_at, t.expires_at, t.revoked_at, t.models, t.max_connections
FROM tokens AS t JOIN accounts AS a ON a.id = t.account
WHERE (:account IS NULL OR t.account = :account) AND t.id > :after ORDER BY t.id LIMIT :limit;

-- name: get_token
-- With the number of workers that are connected with it.
SELECT t.id, a.username, t.kind, t.name, t.hint, t.created_at, t.expires_at, t.revoked_at, t.models, t.max_connections,
    (SELECT count(*) FROM workers AS w WHERE w.token = t.id AND w.state = 'online')
FROM tokens AS t JOIN accounts AS a ON a.id = t.account
WHERE t.id = :id;

-- name: revoke_token
UPDATE tokens SET revoked_at = coalesce(revoked_at, :now)
WHERE id = :id AND (:account IS NULL OR account = :account) RETURNING id;

-- name: count_admins
SELECT count(*) FROM tokens WHERE kind = 'admin' AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > :now);

-- name: register_model
INSERT INTO models (account, owner, name, created_at) VALUES (:account, :owner, :name, :now)
ON CONFLICT (account, owner, name) DO NOTHING;

-- name: register_version
INSERT INTO versions (account, id, owner, name, cog_version, schema, output_kind, created_at)
VALUES (:account, :id, :owner, :name, :cog_version, :schema, :output_kind, :now)
ON CONFLICT (account, id, owner, name) DO NOTHING RETURNING id;

-- name: set_latest_version
-- The newest registered version is the latest.
UPDATE models SET latest_version = (
    SELECT id FROM versions
    WHERE account = :account AND owner = :owner AND name = :name ORDER BY created_at DESC, id DESC LIMIT 1)
WHERE account = :account AND owner = :owner AND name = :name;

-- name: set_model
-- `changes` is a JSON object: a member that is absent leaves its column as it is, null empties it.
UPDATE models SET
    description = CASE WHEN json_type(:changes, '$.description') IS NULL THEN description ELSE :changes ->> 'description' END,
    rerun = CASE WHEN json_type(:changes, '$.rerun') IS NULL THEN rerun ELSE :changes ->> 'rerun' END,
    run_limit_s = CASE WHEN json_type(:changes, '$.run_limit_s') IS NULL THEN run_limit_s ELSE :changes ->> 'run_limit_s' END,
    start_limit_s = CASE WHEN json_type(:changes, '$.start_limit_s') IS NULL THEN start_limit_s ELSE :changes ->> 'start_limit_s' END,
    max_queued = CASE WHEN json_type(:changes, '$.max_queued') IS NULL THEN max_queued ELSE :changes ->> 'max_queued' END,
    requirements = CASE WHEN json_type(:changes, '$.requirements') IS NULL THEN requirements ELSE :changes ->> 'requirements' END
WHERE account = :account AND owner = :owner AND name = :name RETURNING name;

-- name: find_model
-- The account's own first, then what is shared.
SELECT m.account, m.owner, m.name, m.description, m.run_count, m.rerun, m.created_at,
    m.run_limit_s, m.start_limit_s, m.max_queued, m.requirements, v.id, v.cog_version, v.schema, v.output_kind,
    v.created_at
FROM models AS m
LEFT JOIN versions AS v
    ON v.account = m.account AND v.id = m.latest_version AND v.owner = m.owner AND v.name = m.name
WHERE m.account IN (:account, 'shared') AND m.owner = :owner AND m.name = :name
ORDER BY m.account = 'shared' LIMIT 1;

-- name: list_models
SELECT m.account, m.owner, m.name, m.description, m.run_count, m.rerun, m.created_at,
    m.run_limit_s, m.start_limit_s, m.max_queued, m.requirements, v.id, v.cog_version, v.schema, v.output_kind,
    v.created_at
FROM models AS m
LEFT JOIN versions AS v
    ON v.account = m.account AND v.id = m.latest_version AND v.owner = m.owner AND v.name = m.name
WHERE m.account IN (:account, 'shared') AND (m.owner, m.name) > (:after_owner, :after_name)
    AND (m.account = :account OR NOT EXISTS (
        SELECT 1 FROM models AS own WHERE own.account = :account AND own.owner = m.owner AND own.name = m.name))
ORDER BY m.owner, m.name LIMIT :limit;

-- name: find_version
SELECT account, owner, name, id, cog_version, schema, output_kind, created_at
FROM versions WHERE account IN (:account, 'shared') AND id = :id
    AND (:owner IS NULL OR owner = :owner) AND (:name IS NULL OR name = :name)
ORDER BY account = 'shared', created_at LIMIT 1;

-- name: list_versions
SELECT account, owner, name, id, cog_version, schema, output_kind, created_at
FROM versions WHERE account = :account AND owner = :owner AND name = :name
ORDER BY created_at DESC, id DESC LIMIT :limit OFFSET :offset;

-- name: catalogs_with
-- The accounts (own, shared) whose workers may run this model.
SELECT account FROM models WHERE account IN (:account, 'shared') AND owner = :owner AND name = :name;
