-- What streams read of predictions that run on another node.

-- name: stream_states
-- `predictions` is a JSON array of ids.
SELECT p.id, p.attempt, p.phase, p.output_items, p.log_bytes
FROM json_each(:predictions) AS wanted
JOIN predictions AS p ON p.id = wanted.value;

-- name: stream_chunks
-- From the chunk on in which the position lies; what a node had not committed when it died may be cut otherwise.
SELECT kind, position, data FROM chunks
WHERE prediction = :prediction AND attempt = :attempt AND kind = 'output' AND position >= coalesce((
    SELECT max(position) FROM chunks
    WHERE prediction = :prediction AND attempt = :attempt AND kind = 'output' AND position <= :items
), 0)
UNION ALL
SELECT kind, position, data FROM chunks
WHERE prediction = :prediction AND attempt = :attempt AND kind = 'log' AND position >= coalesce((
    SELECT max(position) FROM chunks
    WHERE prediction = :prediction AND attempt = :attempt AND kind = 'log' AND position <= :log_bytes
), 0)
ORDER BY kind, position;
