-- Files of clients: uploads, which have an end of their own, and large data URLs, which go with their prediction.

-- name: insert_upload
INSERT INTO files (id, account, purpose, name, content_type, state, created_at)
VALUES (:id, :account, 'input', :name, :content_type, 'pending', :now);

-- name: finish_upload
-- Returns no row if it took so long that it was given up.
UPDATE files SET
    state = 'bound', name = :name, content_type = :content_type, metadata = :metadata, size = :size, sha256 = :sha256,
    md5 = :md5, expires_at = :expires_at
WHERE id = :id AND state = 'pending' RETURNING id;

-- name: abandon_uploads
UPDATE files SET state = 'expired'
WHERE state = 'pending' AND purpose = 'input' AND id IN (SELECT value FROM json_each(:files));

-- name: list_uploads
SELECT id, account, purpose, prediction, attempt, name, content_type, size, sha256, md5, metadata, state, created_at,
    expires_at
FROM files
WHERE account = :account AND purpose = 'input' AND prediction IS NULL AND id < :before AND state = 'bound'
    AND expires_at > :now
ORDER BY id DESC LIMIT :limit;

-- name: list_uploads_upwards
SELECT id, account, purpose, prediction, attempt, name, content_type, size, sha256, md5, metadata, state, created_at,
    expires_at
FROM files
WHERE account = :account AND purpose = 'input' AND prediction IS NULL AND id > :after AND state = 'bound'
    AND expires_at > :now
ORDER BY id LIMIT :limit;

-- name: end_upload
-- Nobody sees the file any more; its bytes stay for predictions that are to read them.
UPDATE files SET expires_at = :now
WHERE id = :id AND account = :account AND purpose = 'input' AND prediction IS NULL AND state = 'bound'
    AND expires_at > :now
RETURNING id;

-- name: use_file
-- Returns no row if there is no such file any more.
INSERT INTO file_uses (file, prediction)
SELECT id, :prediction FROM files
WHERE id = :file AND account = :account AND state <> 'expired' AND size IS NOT NULL
    AND (prediction IS NOT NULL OR expires_at > :now)
RETURNING file;

-- name: bind_input_file
UPDATE files SET state = 'bound', prediction = :prediction
WHERE id = :file AND state = 'pending' AND size IS NOT NULL RETURNING id;

-- name: files_of_input
-- The files of ours that the input of a prediction names.
SELECT f.id, f.account, f.purpose, f.prediction, f.attempt, f.name, f.content_type, f.size, f.sha256, f.md5,
    f.metadata, f.state, f.created_at, f.expires_at
FROM file_uses AS u JOIN files AS f ON f.id = u.file
WHERE u.prediction = :prediction AND f.state <> 'expired';

-- name: files_moved
-- The files that data URLs in the input of a prediction became.
SELECT id, account, purpose, prediction, attempt, name, content_type, size, sha256, md5, metadata, state, created_at,
    expires_at
FROM files WHERE prediction = :prediction AND purpose = 'input' AND state <> 'expired';

-- name: file_is_used
SELECT 1 FROM file_uses AS u JOIN predictions AS p ON p.id = u.prediction
WHERE u.file = :file AND p.phase <> 'ended' LIMIT 1;

-- name: expire_uploads
-- Files past their end that no prediction is to read any more.
UPDATE files SET state = 'expired' WHERE state <> 'expired' AND id IN (
    SELECT f.id FROM files AS f
    WHERE f.expires_at < :cutoff AND f.state <> 'expired' AND NOT EXISTS (
        SELECT 1 FROM file_uses AS u JOIN predictions AS p ON p.id = u.prediction
        WHERE u.file = f.id AND p.phase <> 'ended')
    ORDER BY f.expires_at LIMIT :limit)
RETURNING id;

-- name: drop_file_uses
DELETE FROM file_uses WHERE file IN (SELECT value FROM json_each(:files));
