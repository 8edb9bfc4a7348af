-- Second chances: predictions that pause before their next attempt, those that struck out, workers that lose runs.

-- name: park
-- An entry of a parked prediction, which nobody may claim before `not_before`.
INSERT INTO queue_entries (prediction, queue, flow, priority, rank, not_before, avoid_worker, avoid_until)
SELECT id, :queue::text, flow, priority, created_at, :not_before::bigint, :avoid_worker::text, :avoid_until::bigint
FROM predictions WHERE id = :prediction AND phase = 'parked' FOR UPDATE;

-- name: next_release
-- When the first and the last of the pauses under way are over.
SELECT (SELECT min(not_before) FROM queue_entries WHERE not_before IS NOT NULL),
    (SELECT max(not_before) FROM queue_entries WHERE not_before IS NOT NULL);

-- name: due_entries
-- The queues of what has paused long enough, or, after the wall clock was set back, would pause longer than any may.
SELECT prediction, queue FROM (
    SELECT prediction, queue FROM queue_entries WHERE not_before IS NOT NULL AND not_before <= :now
    UNION ALL
    SELECT prediction, queue FROM queue_entries WHERE not_before IS NOT NULL AND not_before > :latest
) AS due LIMIT :limit;

-- name: release_predictions
-- `predictions` is a JSON array of ids; one that another transaction holds, or has released meanwhile, is left alone.
WITH due AS (
    SELECT p.id FROM predictions AS p
    WHERE p.phase = 'parked' AND p.id IN (SELECT json_array_elements_text(:predictions::json)) AND EXISTS (
        SELECT 1 FROM queue_entries AS e
        WHERE e.prediction = p.id AND (e.not_before <= :now::bigint OR e.not_before > :latest::bigint))
    FOR UPDATE OF p SKIP LOCKED
)
UPDATE predictions SET phase = 'queued' FROM due WHERE predictions.id = due.id
RETURNING predictions.id;

-- name: release_entries
-- How long a worker is avoided counts from here.
UPDATE queue_entries SET
    not_before = NULL,
    avoid_until = CASE WHEN avoid_worker IS NULL THEN NULL ELSE :avoid_until::bigint END
WHERE not_before IS NOT NULL AND prediction IN (SELECT json_array_elements_text(:predictions::json))
    AND (SELECT phase FROM predictions AS p WHERE p.id = queue_entries.prediction) = 'queued';

-- name: list_struck_out
-- What failed because its attempts were lost, and nobody has looked after yet.
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions
WHERE account = :account AND struck_out = 1 AND (:status::text IS NULL OR status = :status)
    AND (:model::text IS NULL OR model = :model)
    AND id < :before AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id DESC LIMIT :limit;

-- name: list_struck_out_upwards
-- The page before a cursor: the nearest newer ones, oldest first.
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions
WHERE account = :account AND struck_out = 1 AND (:status::text IS NULL OR status = :status)
    AND (:model::text IS NULL OR model = :model)
    AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id LIMIT :limit;

-- name: mark_requeued
-- Notes the new prediction that is made of one that ended without success; returns no row if there is one already, or
-- nothing to make it of.
UPDATE predictions SET struck_out = 0, requeued_as = :requeued_as
WHERE id = :prediction AND phase = 'ended' AND status <> 'succeeded' AND data_removed = 0 AND requeued_as IS NULL
RETURNING id;

-- name: count_loss
-- One more run lost in a row; with `most` of them the worker is set aside. What had started before the last loss was
-- lost with it and does not count again, unless the wall clock was set back since.
UPDATE workers SET
    losses = losses + 1, lost_at = :now::bigint,
    quarantines = quarantines + CASE WHEN quarantine IS NULL AND losses + 1 >= :most::bigint THEN 1 ELSE 0 END,
    quarantined_at = CASE WHEN quarantine IS NULL AND losses + 1 >= :most THEN :now ELSE quarantined_at END,
    quarantine = CASE WHEN quarantine IS NULL AND losses + 1 >= :most THEN :reason::text ELSE quarantine END
WHERE id = :worker AND (lost_at IS NULL OR :started_at::bigint > lost_at OR lost_at > :now)
RETURNING losses, quarantines, quarantine, quarantined_at;

-- name: set_aside
-- A worker's own word that its model does not work.
UPDATE workers SET
    quarantines = CASE WHEN quarantine IS NULL THEN quarantines + 1 ELSE quarantines END,
    quarantined_at = CASE WHEN quarantine IS NULL THEN :now::bigint ELSE quarantined_at END,
    quarantine = :reason
WHERE id = :worker AND link_epoch = :epoch
RETURNING losses, quarantines, quarantine, quarantined_at;

-- name: lift_quarantine
-- The worker has proved healthy: it gets work again, one loss away (`probation`) from the next quarantine.
UPDATE workers SET quarantine = NULL, quarantined_at = NULL, losses = :probation
WHERE id = :worker AND link_epoch = :epoch AND quarantine IS NOT NULL
RETURNING losses, quarantines, quarantine, quarantined_at;

-- name: forget_losses
-- A run succeeded: what was lost before it does not count any more.
UPDATE workers SET losses = 0, quarantines = 0, lost_at = NULL
WHERE id = :worker AND link_epoch = :epoch AND quarantine IS NULL;

-- name: quarantined_workers
SELECT id, losses, quarantines, quarantine, quarantined_at FROM workers WHERE quarantine IS NOT NULL;

-- name: worker_standing
SELECT losses, quarantines, quarantine, quarantined_at FROM workers WHERE id = :worker;

-- name: note_setup_failure
-- A worker whose model was not set up never opens a link: this makes it and the reason visible until it does. Its next
-- link is one of a new `instance` in any case. A worker id that belongs to another account returns no row.
INSERT INTO workers (
    id, account, token, name, instance, node, link_epoch, state, offers, agent, connected_at, changed_at,
    quarantine, quarantined_at
) VALUES (:worker, :account, :token, :name, '', '', 0, 'offline', :offers, '{}', :now, :now, :reason, :now)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, instance = '', changed_at = excluded.changed_at, quarantine = excluded.quarantine,
    quarantined_at = excluded.quarantined_at, setup_since = NULL
    WHERE workers.account = excluded.account
RETURNING id;

-- name: note_setup
-- A worker that sets its model up is shown before it opens a link. A worker id that belongs to another account returns
-- no row.
INSERT INTO workers (
    id, account, token, name, instance, node, link_epoch, state, offers, agent, connected_at, changed_at, setup_since
) VALUES (:worker, :account, :token, :name, '', '', 0, 'offline', :offers, '{}', :now, :now, :now)
ON CONFLICT (id) DO UPDATE SET name = excluded.name, setup_since = excluded.setup_since
    WHERE workers.account = excluded.account
RETURNING id;

-- name: note_setup_over
-- It does not set its model up any more, and nothing is wrong with it.
UPDATE workers SET setup_since = NULL WHERE id = :worker AND account = :account RETURNING id;
