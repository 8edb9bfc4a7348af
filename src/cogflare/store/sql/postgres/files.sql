-- Files: pending while they are written, bound once a finish names them, expired when their bytes are to go.

-- name: hold_attempt
-- Returns a row only for an attempt that this worker holds and that has not ended; until the unit ends it does not, and
-- what counts its files waits.
SELECT 1 FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction AND p.attempt = a.attempt
WHERE a.prediction = :prediction AND a.attempt = :attempt AND a.holder = :worker AND a.ended_at IS NULL
FOR UPDATE OF a;

-- name: insert_output_file
-- Returns a row only where the attempt has fewer than `most` files.
INSERT INTO files (id, account, purpose, prediction, attempt, name, content_type, state, created_at)
SELECT :id::text, p.account, 'output', p.id, :attempt::bigint, :name::text, :content_type::text, 'pending', :now::bigint
FROM predictions AS p
WHERE p.id = :prediction AND (:most::bigint IS NULL OR :most::bigint > (
    SELECT count(*) FROM files AS f WHERE f.prediction = :prediction AND f.attempt = :attempt::bigint))
RETURNING id;

-- name: complete_file
UPDATE files SET size = :size, sha256 = :sha256, md5 = :md5 WHERE id = :id AND state = 'pending' RETURNING id;

-- name: bind_files
UPDATE files SET state = 'bound'
WHERE prediction = :prediction AND attempt = :attempt AND state <> 'expired' AND size IS NOT NULL;

-- name: get_file
SELECT id, account, purpose, prediction, attempt, name, content_type, size, sha256, md5, metadata, state, created_at,
    expires_at
FROM files WHERE id = :id;

-- name: expire_unbound_files
-- Files that no finish has bound, of attempts that nobody can finish any more.
UPDATE files SET state = 'expired' WHERE state = 'pending' AND id IN (
    SELECT f.id FROM files AS f
    WHERE f.state = 'pending' AND f.created_at < :cutoff AND NOT EXISTS (
        SELECT 1 FROM predictions AS p WHERE p.id = f.prediction AND p.attempt = f.attempt AND p.phase <> 'ended')
    ORDER BY f.created_at LIMIT :limit)
RETURNING id;

-- name: expired_files
-- Files whose bytes are to be removed; their rows go after them.
SELECT id FROM files WHERE state = 'expired' AND id > :after ORDER BY id LIMIT :limit;

-- name: delete_expired_files
DELETE FROM files WHERE state = 'expired' AND id IN (SELECT json_array_elements_text(:files::json)) RETURNING id;
