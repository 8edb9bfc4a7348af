-- Workers of 2022: what they hold, and the files that come from them without saying for which attempt.

-- name: begun_of
-- The attempts of a worker that have begun and not ended.
SELECT prediction, attempt, started_at FROM attempts
WHERE holder = :worker AND ended_at IS NULL AND started_at IS NOT NULL;

-- name: running_of_2022
-- How many attempts of the model workers of 2022 run, and how many of them those that dialled from this address.
SELECT count(*), count(*) FILTER (WHERE w.agent ->> 'address' = :address)
FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction LEFT JOIN workers AS w ON w.id = a.holder
WHERE a.ended_at IS NULL AND substr(a.holder, 1, 5) = '2022-' AND p.model = :model;

-- name: insert_unnamed_file
-- Returns a row only while a worker of 2022 runs the model, and not too many files have come of its attempts: with this
-- `origin` (the model and the sender as JSON text), and with all that begin with `pool`. A file has no prediction until
-- an output names it.
WITH running AS (
    SELECT a.prediction, a.attempt, a.claimed_at FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction
    WHERE a.ended_at IS NULL AND substr(a.holder, 1, 5) = '2022-' AND p.model = :model),
come AS (
    SELECT f.metadata FROM running AS r JOIN files AS f ON f.prediction = r.prediction AND f.attempt = r.attempt
    WHERE f.purpose = 'output' AND substr(f.metadata, 1, length(:pool)) = :pool
    UNION ALL
    SELECT f.metadata FROM files AS f
    WHERE f.state = 'pending' AND f.created_at >= (SELECT min(claimed_at) FROM running)
        AND f.prediction IS NULL AND substr(f.metadata, 1, length(:pool)) = :pool)
INSERT INTO files (id, account, purpose, name, content_type, metadata, state, created_at)
SELECT :id, '', 'output', :name, :content_type, :origin, 'pending', :now
WHERE EXISTS (SELECT 1 FROM running) AND (SELECT count(*) FROM come) < :pool_limit
    AND (SELECT count(*) FROM come WHERE metadata = :origin) < :limit
RETURNING id;

-- name: files_of_2022
-- What has come of the attempts that run: files and bytes with this origin, then with all that begin with `pool`; then
-- the same of what lies here since then that no output has named, of earlier attempts too.
WITH running AS (
    SELECT a.prediction, a.attempt, a.claimed_at FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction
    WHERE a.ended_at IS NULL AND substr(a.holder, 1, 5) = '2022-' AND p.model = :model),
come AS (
    SELECT f.size, f.metadata = :origin AS is_own, TRUE AS is_now, FALSE AS is_unnamed
    FROM running AS r JOIN files AS f ON f.prediction = r.prediction AND f.attempt = r.attempt
    WHERE f.purpose = 'output' AND substr(f.metadata, 1, length(:pool)) = :pool
    UNION ALL
    SELECT f.size, f.metadata = :origin, f.created_at >= (SELECT min(claimed_at) FROM running), TRUE FROM files AS f
    WHERE f.state = 'pending' AND f.created_at >= :since AND f.prediction IS NULL
        AND substr(f.metadata, 1, length(:pool)) = :pool)
SELECT count(*) FILTER (WHERE is_now AND is_own), coalesce(sum(size) FILTER (WHERE is_now AND is_own), 0),
    count(*) FILTER (WHERE is_now), coalesce(sum(size) FILTER (WHERE is_now), 0),
    count(*) FILTER (WHERE is_unnamed AND is_own), coalesce(sum(size) FILTER (WHERE is_unnamed AND is_own), 0),
    count(*) FILTER (WHERE is_unnamed), coalesce(sum(size) FILTER (WHERE is_unnamed), 0)
FROM come;

-- name: name_file
-- A file that an output of this attempt names becomes one of the attempt; `model` begins the origins of its model.
UPDATE files SET account = p.account, prediction = a.prediction, attempt = a.attempt
FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction AND p.attempt = a.attempt
WHERE files.id = :id AND files.state = 'pending' AND files.purpose = 'output' AND files.prediction IS NULL
    AND files.size IS NOT NULL AND substr(files.metadata, 1, length(:model)) = :model
    AND a.prediction = :prediction AND a.attempt = :attempt AND a.holder = :worker AND a.ended_at IS NULL
RETURNING files.id;
