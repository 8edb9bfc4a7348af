-- Workers of 2022: what they hold, and the files that come from them without saying for which attempt.

-- name: begun_of
-- The attempts of a worker that have begun and not ended.
SELECT prediction, attempt, started_at FROM attempts
WHERE holder = :worker AND ended_at IS NULL AND started_at IS NOT NULL;

-- name: insert_unnamed_file
-- Returns a row only while a worker of 2022 runs the model, and not too many files have come of its attempts.
-- `origin` is the model as JSON text; a file has no prediction until an output names it.
WITH running AS (
    SELECT a.prediction, a.attempt, a.claimed_at FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction
    WHERE a.ended_at IS NULL AND substr(a.holder, 1, 5) = '2022-' AND p.model = :model)
INSERT INTO files (id, account, purpose, name, content_type, metadata, state, created_at)
SELECT :id::text, '', 'output', :name::text, :content_type::text, :origin::text, 'pending', :now::bigint
WHERE (SELECT count(*) FROM running) * :limit::bigint > (
        SELECT count(*) FROM running AS r JOIN files AS f ON f.prediction = r.prediction AND f.attempt = r.attempt
        WHERE f.purpose = 'output'
    ) + (
        SELECT count(*) FROM files AS f
        WHERE f.state = 'pending' AND f.created_at >= (SELECT min(claimed_at) FROM running)
            AND f.prediction IS NULL AND f.metadata = :origin)
RETURNING id;

-- name: files_of_2022
-- How many attempts of the model workers of 2022 run, how many files have come of them, and their bytes; then how many
-- files and bytes lie here since then that no output has named, of earlier attempts too.
WITH running AS (
    SELECT a.prediction, a.attempt, a.claimed_at FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction
    WHERE a.ended_at IS NULL AND substr(a.holder, 1, 5) = '2022-' AND p.model = :model),
theirs AS (
    SELECT f.size FROM running AS r JOIN files AS f ON f.prediction = r.prediction AND f.attempt = r.attempt
    WHERE f.purpose = 'output'
    UNION ALL
    SELECT f.size FROM files AS f
    WHERE f.state = 'pending' AND f.created_at >= (SELECT min(claimed_at) FROM running)
        AND f.prediction IS NULL AND f.metadata = :origin),
unnamed AS (
    SELECT f.size FROM files AS f
    WHERE f.state = 'pending' AND f.created_at >= :since::bigint AND f.prediction IS NULL AND f.metadata = :origin)
SELECT (SELECT count(*) FROM running), (SELECT count(*) FROM theirs), (SELECT coalesce(sum(size), 0)::bigint FROM theirs),
    (SELECT count(*) FROM unnamed), (SELECT coalesce(sum(size), 0)::bigint FROM unnamed);

-- name: name_file
-- A file that an output of this attempt names becomes one of the attempt.
UPDATE files SET account = p.account, prediction = a.prediction, attempt = a.attempt
FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction AND p.attempt = a.attempt
WHERE files.id = :id AND files.state = 'pending' AND files.purpose = 'output' AND files.prediction IS NULL
    AND files.size IS NOT NULL AND files.metadata = :origin
    AND a.prediction = :prediction AND a.attempt = :attempt AND a.holder = :worker AND a.ended_at IS NULL
RETURNING files.id;
