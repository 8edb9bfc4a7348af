-- What workers of one's own have run, and how long runs take.

-- name: add_usage
-- `usage` is a JSON array of [account, model, day, runs, run_us], each account, model and day once.
INSERT INTO usage (account, model, day, runs, run_us)
SELECT value ->> 0, value ->> 1, value ->> 2, (value ->> 3)::bigint, (value ->> 4)::bigint
FROM json_array_elements(:usage::json)
ON CONFLICT (account, day, model) DO UPDATE SET
    runs = usage.runs + excluded.runs, run_us = usage.run_us + excluded.run_us;

-- name: add_run_times
-- `times` is a JSON array of [catalog, model, version, gpu, samples], each place once; of all samples the last are kept.
INSERT INTO run_times (catalog, model, version, gpu, samples, changed_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, :now::bigint
FROM json_array_elements(:times::json)
ON CONFLICT (catalog, model, version, gpu) DO UPDATE SET
    changed_at = excluded.changed_at, samples = (
        SELECT json_agg(kept.sample ORDER BY kept.part, kept.place)::text FROM (
            SELECT 0 AS part, old.place, old.value AS sample
            FROM json_array_elements(run_times.samples::json) WITH ORDINALITY AS old (value, place)
            UNION ALL
            SELECT 1, new.place, new.value
            FROM json_array_elements(excluded.samples::json) WITH ORDINALITY AS new (value, place)
            ORDER BY 1 DESC, 2 DESC LIMIT :kept
        ) AS kept);

-- name: run_times
SELECT version, gpu, samples FROM run_times WHERE catalog = :catalog AND model = :model ORDER BY version, gpu;

-- name: used
-- By day; without an account of all of them.
SELECT u.model, u.day, sum(u.runs)::bigint, sum(u.run_us)::bigint
FROM accounts AS a JOIN usage AS u ON u.account = a.id
WHERE (:account::text IS NULL OR a.id = :account) AND u.day >= :since AND u.day <= :until
GROUP BY u.model, u.day ORDER BY u.day, u.model;
