-- Every transition of a prediction is one compare-and-set on its phase and attempt.
--
-- The row of the prediction is the lock of everything that belongs to it (attempts, entries): each unit takes it first,
-- by the UPDATE of its compare-and-set, by `FOR UPDATE`, or by having inserted it. Whoever waited for it looks at the
-- new row again (READ COMMITTED), and its later statements see all that the winner did. So for each pair:
--   claim - claim      the second skips the locked row; where it comes after the commit, phase or entry is gone
--   claim - cancel     the claim skips the row; the cancel waits, finds another attempt, and is a Conflict
--   claim - finish     the same: a finish of the attempt before waits, finds another attempt, and is superseded
--   claim - requeue    the new entries cannot be seen before the row is free
--   claim - readopt    the claim skips the row; a readopt that waited finds another attempt
--   finish - cancel    the second waits and finds the phase `ended`
--   requeue - readopt  the second waits; a requeue for an expired lease finds it renewed, and is a Conflict
--   enqueue - cancel   the enqueue locks the row, so it leaves no entry of an ended prediction
--   release - others   the release skips the row; who waits for a release finds the entries that it made ready

-- name: insert_prediction
-- Returns no row where as many as may wait for the account or the model wait already. Entries are counted, and of a
-- model those of its queue and of one version's: two short index scans, since both are sums over flows that wait.
-- What another node is just committing is not seen, so several nodes may exceed a limit by what they commit at once.
INSERT INTO predictions (
    id, account, token, catalog, model, version, pinned, flow, priority, phase, status, created_at, deadline, input,
    webhook, webhook_events, stream_key, client_id, run_limit_s, start_by, webhook_host, webhook_origin,
    routed, route, hops, dialect
)
SELECT :id::text, :account::text, :token::text, :catalog::text, :model::text, :version::text, :pinned::bigint,
    :flow::text, :priority::bigint, 'queued', 'starting', :created_at::bigint, :deadline::bigint, :input::text,
    :webhook::text, :webhook_events::text, :stream_key::text, :client_id::text, :run_limit_s::double precision,
    :start_by::bigint, :webhook_host::text, :webhook_origin::text,
    :routed::bigint, :route::text, :hops::bigint, :dialect::text
WHERE (:max_queued::bigint IS NULL
        OR coalesce((SELECT sum(waiting) FROM flows WHERE flow = :flow AND waiting > 0), 0) < :max_queued)
    AND (:max_queued_model::bigint IS NULL
        OR coalesce((SELECT sum(waiting) FROM flows
            WHERE queue IN (:model_queue, :version_queue) AND waiting > 0), 0) < :max_queued_model)
RETURNING id;

-- name: insert_input_part
INSERT INTO inputs (prediction, part, data) VALUES (:prediction, :part, :data);

-- name: enqueue
-- Returns no row if the prediction has left the queue's phase in the meantime.
INSERT INTO queue_entries (prediction, queue, flow, priority, rank, avoid_worker, avoid_until)
SELECT id, :queue::text, flow, priority, created_at, :avoid_worker::text, :avoid_until::bigint
FROM predictions WHERE id = :prediction AND phase = 'queued' FOR UPDATE;

-- name: count_run
UPDATE models SET run_count = run_count + 1 WHERE account = :catalog AND owner = :owner AND name = :name;

-- name: claim_attempt
-- The flows of the two queues by virtual time (two index scans, merged), and of the first that has an entry for this
-- worker that entry: two seeks, and more only where the best flow has nothing but entries that avoid the worker, are of
-- other models than the only one (`model`) that its token is for, or that other transactions hold. Nothing here waits: what is locked is skipped, the link too while it is being replaced. A
-- claim that went through keeps the worker's row shared until it is committed, so no newer link can miss it.
INSERT INTO attempts (prediction, attempt, claim, queue, flow, holder, link_epoch, claimed_at)
SELECT entry.prediction, entry.attempt + 1, :claim::text, best.queue, best.flow, link.id, link.link_epoch, :now::bigint
FROM (SELECT id, link_epoch FROM workers WHERE id = :worker AND link_epoch = :epoch FOR SHARE SKIP LOCKED) AS link
CROSS JOIN (
    (SELECT queue, flow, virtual_time FROM flows WHERE queue = :model_queue AND waiting > 0
        ORDER BY virtual_time LIMIT 16)
    UNION ALL
    (SELECT queue, flow, virtual_time FROM flows WHERE queue = :version_queue AND waiting > 0
        ORDER BY virtual_time LIMIT 16)
    ORDER BY virtual_time LIMIT 16
) AS best
CROSS JOIN LATERAL (
    SELECT e.prediction, p.attempt
    FROM queue_entries AS e JOIN predictions AS p ON p.id = e.prediction AND p.phase = 'queued'
    WHERE e.queue = best.queue AND e.flow = best.flow AND e.not_before IS NULL
        AND (e.avoid_worker IS NULL OR e.avoid_worker <> link.id
            OR e.avoid_until NOT BETWEEN :now::bigint + 1 AND :now::bigint + 60000000)
        AND (:model::text IS NULL OR p.model = :model)
    ORDER BY e.priority, e.rank LIMIT 1
    FOR UPDATE OF p SKIP LOCKED FOR UPDATE OF e SKIP LOCKED
) AS entry
ORDER BY best.virtual_time LIMIT 1
RETURNING prediction;

-- name: assign_claimed
UPDATE predictions SET
    phase = 'assigned', attempt = attempt + 1, version = CASE WHEN pinned = 1 THEN version ELSE :version::text END
WHERE id = (SELECT prediction FROM attempts WHERE holder = :worker AND claim = :claim AND slot_freed_at IS NULL)
RETURNING id, attempt, account, version, input, created_at, run_limit_s, webhook, webhook_events, webhook_origin;

-- name: drop_claimed_entries
DELETE FROM queue_entries WHERE prediction = (
    SELECT prediction FROM attempts WHERE holder = :worker AND claim = :claim AND slot_freed_at IS NULL);

-- name: charge_flow
UPDATE flows SET virtual_time = virtual_time + 1000000
WHERE (queue, flow) = (
    SELECT queue, flow FROM attempts WHERE holder = :worker AND claim = :claim AND slot_freed_at IS NULL);

-- name: has_ended
-- Whether the unit that ended the prediction at this moment was committed.
SELECT 1 FROM predictions
WHERE id = :prediction AND attempt = :attempt AND phase = 'ended' AND completed_at = :completed_at;

-- name: finish_prediction
-- Counts for the current attempt even when a rescuer has queued the prediction again and nobody has claimed it yet;
-- not over an older link, which does not know what the newer one has committed.
UPDATE predictions SET
    phase = 'ended', status = :status, completed_at = :completed_at,
    started_at = coalesce(started_at, :started_at::bigint), output = :output, output_items = :output_items,
    output_bytes = :output_bytes, logs = :logs, log_bytes = :log_bytes, error = :error, metrics = :metrics
WHERE id = :prediction AND attempt = :attempt AND phase <> 'ended'
    AND EXISTS (SELECT 1 FROM attempts WHERE prediction = :prediction AND attempt = :attempt AND holder = :worker
            AND link_epoch = :epoch)
RETURNING id;

-- name: end_prediction
-- Ends a prediction by the server's own decision (cancel, struck out); the attempt is the fence.
-- With `renewals`, only if the lease has not moved since the caller saw it; with `unstarted`, only if it has not started.
-- What is to be aborted and has started is canceled.
WITH current AS (
    SELECT id, attempt FROM predictions
    WHERE id = :prediction AND attempt = :attempt AND phase <> 'ended'
        AND (NOT :unstarted::boolean OR started_at IS NULL) FOR UPDATE
), lease AS (
    SELECT a.renewals FROM current JOIN attempts AS a ON a.prediction = current.id AND a.attempt = current.attempt
    FOR UPDATE OF a
)
UPDATE predictions SET
    phase = 'ended', status = CASE
        WHEN :status::text = 'aborted' AND coalesce(started_at, :started_at::bigint) IS NOT NULL THEN 'canceled'
        ELSE :status END,
    completed_at = :completed_at, error = :error, output_items = :output_items,
    log_bytes = :log_bytes, metrics = :metrics, started_at = coalesce(started_at, :started_at::bigint),
    struck_out = :struck_out::bigint
FROM current WHERE predictions.id = current.id
    AND (:renewals::bigint IS NULL OR EXISTS (SELECT 1 FROM lease WHERE renewals = :renewals))
RETURNING predictions.id;

-- name: drop_entries
DELETE FROM queue_entries WHERE prediction = :prediction;

-- name: end_attempt
-- What an earlier end recorded stays, except that the holder's own word (`overrules`) replaces the guess that it was
-- lost. An attempt never ends before its prediction has moved on: one that a returning worker took up again goes on.
UPDATE attempts SET
    started_at = coalesce(attempts.started_at, :started_at::bigint),
    ended_at = CASE WHEN :overrules::boolean AND outcome = 'lost' THEN :now ELSE coalesce(ended_at, :now::bigint) END,
    outcome = CASE WHEN :overrules AND outcome = 'lost' THEN :outcome ELSE coalesce(outcome, :outcome::text) END,
    reason = CASE WHEN :overrules AND outcome = 'lost' THEN :reason ELSE coalesce(reason, :reason::text) END,
    slot_freed_at = CASE WHEN :slot_free::boolean THEN coalesce(slot_freed_at, :now) ELSE slot_freed_at END,
    output_items = greatest(attempts.output_items, :output_items::bigint),
    log_bytes = greatest(attempts.log_bytes, :log_bytes::bigint)
-- A condition on the joined row alone would be judged as it was before a wait for its lock.
FROM (SELECT id, attempt, phase FROM predictions WHERE id = :prediction FOR UPDATE) AS p
WHERE attempts.prediction = :prediction AND attempts.attempt = :attempt
    AND NOT (p.attempt = :attempt AND p.phase IN ('assigned', 'running'));

-- name: requeue_prediction
-- Back to the queue, or `parked` before that. With `renewals`, only if the lease has not moved since the caller saw it.
-- A link that opens meanwhile moves it, so the attempt is locked too: what a condition says of a row that is not
-- locked was true before the wait.
WITH current AS (
    SELECT p.id
    FROM predictions AS p JOIN attempts AS a ON a.prediction = p.id AND a.attempt = p.attempt
    WHERE p.id = :prediction AND p.attempt = :attempt AND p.phase IN ('assigned', 'running')
        AND (:renewals::bigint IS NULL OR a.renewals = :renewals)
    FOR UPDATE OF p, a
)
UPDATE predictions SET
    phase = :phase::text, strikes = strikes + :strike::bigint, started_at = coalesce(started_at, :started_at::bigint),
    status = CASE WHEN coalesce(started_at, :started_at::bigint) IS NULL THEN 'starting' ELSE 'processing' END,
    output_items = NULL, log_bytes = 0
FROM current WHERE predictions.id = current.id
RETURNING predictions.id;

-- name: append_chunks
-- `chunks` is a JSON array of [prediction, attempt, kind, position, data]; a longer chunk replaces the
-- shorter one that begins at the same position: both are pieces of one stream.
INSERT INTO chunks (prediction, attempt, kind, position, data)
SELECT value ->> 0, (value ->> 1)::bigint, value ->> 2, (value ->> 3)::bigint, value ->> 4
FROM json_array_elements(:chunks::json)
ON CONFLICT (prediction, attempt, kind, position) DO UPDATE SET data = excluded.data
WHERE length(excluded.data) > length(chunks.data);

-- name: checkpoint_chunks
-- As `append_chunks`, for attempts that have not ended and whose link is still the one that wrote the checkpoint:
-- `chunks` is a JSON array of [chunk, link_epoch].
INSERT INTO chunks (prediction, attempt, kind, position, data)
SELECT a.prediction, a.attempt, c.value -> 0 ->> 2, (c.value -> 0 ->> 3)::bigint, c.value -> 0 ->> 4
FROM json_array_elements(:chunks::json) AS c (value)
JOIN attempts AS a ON a.prediction = c.value -> 0 ->> 0 AND a.attempt = (c.value -> 0 ->> 1)::bigint
WHERE a.link_epoch = (c.value ->> 1)::bigint AND a.ended_at IS NULL
ON CONFLICT (prediction, attempt, kind, position) DO UPDATE SET data = excluded.data
WHERE length(excluded.data) > length(chunks.data);

-- name: checkpoint_attempts
-- `attempts` is a JSON array of [prediction, attempt, started_at, output_items, log_bytes, link_epoch].
UPDATE attempts SET
    started_at = coalesce(attempts.started_at, c.started_at),
    output_items = greatest(attempts.output_items, coalesce(c.output_items, 0)),
    log_bytes = greatest(attempts.log_bytes, c.log_bytes)
FROM (
    SELECT value ->> 0 AS prediction, (value ->> 1)::bigint AS attempt, (value ->> 2)::bigint AS started_at,
        (value ->> 3)::bigint AS output_items, (value ->> 4)::bigint AS log_bytes,
        (value ->> 5)::bigint AS epoch
    FROM json_array_elements(:attempts::json)
) AS c
WHERE attempts.prediction = c.prediction AND attempts.attempt = c.attempt AND attempts.ended_at IS NULL
    AND attempts.link_epoch = c.epoch
RETURNING attempts.prediction, attempts.attempt;

-- name: checkpoint_predictions
-- Both rows are locked before they are judged, so that no link that opens meanwhile is overlooked.
WITH c AS (
    SELECT p.id, (value ->> 2)::bigint AS started_at, (value ->> 3)::bigint AS output_items,
        (value ->> 4)::bigint AS log_bytes
    FROM json_array_elements(:attempts::json) AS point (value)
    JOIN predictions AS p ON p.id = value ->> 0 AND p.attempt = (value ->> 1)::bigint
    JOIN attempts AS a ON a.prediction = value ->> 0 AND a.attempt = (value ->> 1)::bigint
    WHERE p.phase IN ('assigned', 'running') AND a.link_epoch = (value ->> 5)::bigint
    FOR UPDATE OF p, a
)
UPDATE predictions SET
    phase = 'running', status = 'processing', started_at = coalesce(predictions.started_at, c.started_at),
    output_items = CASE WHEN c.output_items > coalesce(predictions.output_items, 0) THEN c.output_items
                        ELSE predictions.output_items END,
    log_bytes = greatest(predictions.log_bytes, c.log_bytes)
FROM c WHERE predictions.id = c.id;

-- name: put_result
INSERT INTO chunks (prediction, attempt, kind, position, data)
SELECT prediction, attempt, 'result', :position::bigint, :data::text FROM attempts
WHERE prediction = :prediction AND attempt = :attempt AND holder = :worker AND ended_at IS NULL FOR SHARE
ON CONFLICT (prediction, attempt, kind, position) DO UPDATE SET data = excluded.data
RETURNING position;

-- name: drop_results
DELETE FROM chunks WHERE prediction = :prediction AND attempt = :attempt AND kind = 'result';

-- name: result_bytes
SELECT coalesce(max(position + octet_length(data)), 0) FROM chunks
WHERE prediction = :prediction AND attempt = :attempt AND kind = 'result';

-- name: get_prediction
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions WHERE id = :id;

-- name: get_client_prediction
-- By the id that the client gave.
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions WHERE account = :account AND client_id = :client_id;

-- name: list_predictions
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions
WHERE account = :account AND id < :before AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id DESC LIMIT :limit;

-- name: list_predictions_by_status
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions
WHERE account = :account AND status = :status AND id < :before AND id > :after
    AND created_at >= :created_from AND created_at < :created_to
ORDER BY id DESC LIMIT :limit;

-- name: list_predictions_by_model
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions
WHERE account = :account AND model = :model AND (:status::text IS NULL OR status = :status)
    AND id < :before AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id DESC LIMIT :limit;

-- name: list_predictions_upwards
-- The page before a cursor: the nearest newer ones, oldest first.
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions
WHERE account = :account AND (:status::text IS NULL OR status = :status) AND (:model::text IS NULL OR model = :model)
    AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id LIMIT :limit;

-- name: input_parts
-- All parts or none: what goes part by part is hidden first.
SELECT i.prediction, i.data FROM inputs AS i JOIN predictions AS p ON p.id = i.prediction
WHERE i.prediction IN (SELECT value FROM json_array_elements_text(:predictions::json)) AND p.data_removed = 0
ORDER BY i.prediction, i.part;

-- name: read_chunks
-- `attempts` is a JSON array of [prediction, attempt]. All chunks or none, as with inputs.
SELECT c.prediction, c.attempt, c.kind, c.position, c.data
FROM json_array_elements(:attempts::json) AS wanted (value)
JOIN chunks AS c ON c.prediction = wanted.value ->> 0 AND c.attempt = (wanted.value ->> 1)::bigint
JOIN predictions AS p ON p.id = c.prediction AND p.data_removed = 0
ORDER BY c.prediction, c.kind, c.position;

-- name: ready_queues
SELECT DISTINCT queue FROM flows WHERE waiting > 0;

-- name: list_attempts
SELECT attempt, holder, claimed_at, started_at, ended_at, outcome, reason, slot_freed_at
FROM attempts WHERE prediction = :prediction ORDER BY attempt;
