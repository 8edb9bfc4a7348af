-- What workers of one's own have run, and how long runs take.

-- name: add_usage
-- `usage` is a JSON array of [account, model, day, runs, run_us], each account, model and day once.
INSERT INTO usage (account, model, day, runs, run_us)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(:usage) WHERE true
ON CONFLICT (account, day, model) DO UPDATE SET
    runs = usage.runs + excluded.runs, run_us = usage.run_us + excluded.run_us;

-- name: add_run_times
-- `times` is a JSON array of [catalog, model, version, gpu, samples], each place once; of all samples the last are kept.
INSERT INTO run_times (catalog, model, version, gpu, samples, changed_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value -> 4, :now FROM json_each(:times) WHERE true
ON CONFLICT (catalog, model, version, gpu) DO UPDATE SET
    changed_at = excluded.changed_at, samples = (
        SELECT json_group_array(kept.sample ORDER BY kept.part, kept.place) FROM (
            SELECT 0 AS part, key AS place, value AS sample FROM json_each(run_times.samples)
            UNION ALL
            SELECT 1, key, value FROM json_each(excluded.samples)
            ORDER BY 1 DESC, 2 DESC LIMIT :kept
        ) AS kept);

-- name: run_times
SELECT version, gpu, samples FROM run_times WHERE catalog = :catalog AND model = :model ORDER BY version, gpu;

-- name: used
-- By day; without an account of all of them.
SELECT u.model, u.day, sum(u.runs), sum(u.run_us)
FROM accounts AS a CROSS JOIN usage AS u ON u.account = a.id
WHERE (:account IS NULL OR a.id = :account) AND u.day >= :since AND u.day <= :until
GROUP BY u.model, u.day ORDER BY u.day, u.model;
