-- What streams read of predictions that run on another node.

-- name: stream_states
-- `predictions` is a JSON array of ids.
SELECT p.id, p.attempt, p.phase, p.output_items, p.log_bytes
FROM json_array_elements_text(:predictions::json) AS wanted (value)
JOIN predictions AS p ON p.id = wanted.value;

-- name: stream_chunks
-- From the chunk on in which the position lies; what a node had not committed when it died may be cut otherwise.
SELECT kind, position, data FROM chunks
WHERE prediction = :prediction::text AND attempt = :attempt::bigint AND kind = 'output' AND position >= coalesce((
    SELECT max(position) FROM chunks
    WHERE prediction = :prediction::text AND attempt = :attempt::bigint AND kind = 'output' AND position <= :items::bigint
), 0)
UNION ALL
SELECT kind, position, data FROM chunks
WHERE prediction = :prediction::text AND attempt = :attempt::bigint AND kind = 'log' AND position >= coalesce((
    SELECT max(position) FROM chunks
    WHERE prediction = :prediction::text AND attempt = :attempt::bigint AND kind = 'log' AND position <= :log_bytes::bigint
), 0)
ORDER BY kind, position;
