-- Files: pending while they are written, bound once a finish names them.

-- name: insert_output_file
-- Returns a row only for an attempt that this worker holds and that has not ended.
INSERT INTO files (id, account, purpose, prediction, attempt, name, content_type, state, created_at)
SELECT :id::text, p.account, 'output', p.id, a.attempt, :name::text, :content_type::text, 'pending', :now::bigint
FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction AND p.attempt = a.attempt
WHERE a.prediction = :prediction AND a.attempt = :attempt AND a.holder = :worker AND a.ended_at IS NULL
FOR SHARE OF a
RETURNING id;

-- name: complete_file
UPDATE files SET size = :size, sha256 = :sha256, md5 = :md5 WHERE id = :id AND state = 'pending' RETURNING id;

-- name: bind_files
UPDATE files SET state = 'bound' WHERE prediction = :prediction AND attempt = :attempt AND size IS NOT NULL;

-- name: get_file
SELECT id, account, purpose, prediction, attempt, name, content_type, size, sha256, md5, metadata, state, created_at,
    expires_at
FROM files WHERE id = :id;
