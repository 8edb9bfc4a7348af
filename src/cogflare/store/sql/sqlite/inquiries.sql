-- What is asked about one prediction: what it waits for, and what it took.

-- name: entries_of
SELECT queue, not_before, avoid_worker, avoid_until FROM queue_entries WHERE prediction = :prediction ORDER BY queue;

-- name: provider_waits
-- How long the last runs of a model waited at a provider before they started there, the newest first.
SELECT a.started_at - e.created_at FROM errands AS e
JOIN attempts AS a ON a.prediction = e.prediction AND a.attempt = e.attempt
WHERE e.account = :account AND e.created_at > :since AND e.provider = :provider AND e.model = :model
    AND a.started_at IS NOT NULL
ORDER BY e.created_at DESC LIMIT :limit;

-- name: dearest
-- What the last runs of a model at a provider took and cost at most.
SELECT max(run_us), max(cost) FROM (
    SELECT run_us, cost FROM errands
    WHERE account = :account AND provider = :provider AND model = :model AND created_at > :since
        AND state = 'over' AND is_in_doubt = 0 AND run_us > 0
    ORDER BY created_at DESC LIMIT :limit) AS last;

-- name: attempt_costs
SELECT attempt, cost FROM attempts WHERE prediction = :prediction AND cost IS NOT NULL;

-- name: prediction_bytes
-- Bytes of the input and of the output, each null where it is gone or there is none.
SELECT
    coalesce(
        length(CAST(p.input AS BLOB)),
        (SELECT sum(length(CAST(i.data AS BLOB))) FROM inputs AS i WHERE i.prediction = p.id)),
    coalesce(
        length(CAST(p.output AS BLOB)), p.output_bytes,
        (SELECT sum(length(CAST(c.data AS BLOB))) FROM chunks AS c
            WHERE c.prediction = p.id AND c.attempt = p.attempt AND c.kind = 'output'))
FROM predictions AS p WHERE p.id = :prediction AND p.data_removed = 0;

-- name: prediction_files
-- Files that its input names, and those of its output: how many, and their bytes.
SELECT 'input', count(*), coalesce(sum(f.size), 0)
FROM file_uses AS u JOIN files AS f ON f.id = u.file WHERE u.prediction = :prediction
UNION ALL
SELECT 'output', count(*), coalesce(sum(f.size), 0)
FROM files AS f
WHERE f.prediction = :prediction AND f.attempt = :attempt AND f.purpose = 'output' AND f.size IS NOT NULL;

-- name: ran_where
-- Who has, or had, the last attempt; of a provider its kind, if it is still there, and its own name for the run.
SELECT a.holder, p.kind, e.remote_id
FROM attempts AS a
LEFT JOIN errands AS e ON e.prediction = a.prediction AND e.attempt = a.attempt
LEFT JOIN providers AS p ON p.id = e.provider
WHERE a.prediction = :prediction ORDER BY a.attempt DESC LIMIT 1;
