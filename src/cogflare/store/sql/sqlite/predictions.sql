-- Every transition of a prediction is one compare-and-set on its phase and attempt.

-- name: insert_prediction
-- Returns no row where as many as may wait for the account or the model wait already. Entries are counted, and of a
-- model those of its queue and of one version's: two short index scans, since both are sums over flows that wait.
INSERT INTO predictions (
    id, account, token, catalog, model, version, pinned, flow, priority, phase, status, created_at, deadline, input,
    webhook, webhook_events, stream_key, client_id, run_limit_s, start_by, webhook_host, webhook_origin,
    routed, route, hops, dialect
)
SELECT :id, :account, :token, :catalog, :model, :version, :pinned, :flow, :priority, 'queued', 'starting', :created_at,
    :deadline, :input, :webhook, :webhook_events, :stream_key, :client_id, :run_limit_s, :start_by,
    :webhook_host, :webhook_origin, :routed, :route, :hops, :dialect
WHERE (:max_queued IS NULL
        OR coalesce((SELECT sum(waiting) FROM flows WHERE flow = :flow AND waiting > 0), 0) < :max_queued)
    AND (:max_queued_model IS NULL
        OR coalesce((SELECT sum(waiting) FROM flows
            WHERE queue IN (:model_queue, :version_queue) AND waiting > 0), 0) < :max_queued_model)
RETURNING id;

-- name: insert_input_part
INSERT INTO inputs (prediction, part, data) VALUES (:prediction, :part, :data);

-- name: enqueue
-- Returns no row if the prediction has left the queue's phase in the meantime.
INSERT INTO queue_entries (prediction, queue, flow, priority, rank, avoid_worker, avoid_until)
SELECT id, :queue, flow, priority, created_at, :avoid_worker, :avoid_until
FROM predictions WHERE id = :prediction AND phase = 'queued';

-- name: count_run
UPDATE models SET run_count = run_count + 1 WHERE account = :catalog AND owner = :owner AND name = :name;

-- name: claim_attempt
-- The flows of the two queues by virtual time (two index scans, merged), and of the first that has an entry for this
-- worker that entry: two seeks, and more only where the best flow has nothing but entries that avoid the worker, or are
-- of other models than the only one (`model`) that its token is for.
INSERT INTO attempts (prediction, attempt, claim, queue, flow, holder, link_epoch, claimed_at)
SELECT p.id, p.attempt + 1, :claim, best.queue, best.flow, :worker, :epoch, :now
FROM (
    SELECT queue, flow, virtual_time FROM flows WHERE queue = :model_queue AND waiting > 0
    UNION ALL
    SELECT queue, flow, virtual_time FROM flows WHERE queue = :version_queue AND waiting > 0
    ORDER BY virtual_time LIMIT 16
) AS best
-- CROSS keeps the order of the loops, so that the first row is the best.
CROSS JOIN predictions AS p ON p.phase = 'queued' AND p.id = (
    SELECT prediction FROM queue_entries
    WHERE queue = best.queue AND flow = best.flow AND not_before IS NULL
        AND (avoid_worker IS NULL OR avoid_worker <> :worker OR avoid_until NOT BETWEEN :now + 1 AND :now + 60000000)
        AND (:model IS NULL OR :model = (SELECT model FROM predictions AS one WHERE one.id = queue_entries.prediction))
    ORDER BY priority, rank LIMIT 1)
WHERE EXISTS (SELECT 1 FROM workers WHERE id = :worker AND link_epoch = :epoch)
LIMIT 1
RETURNING prediction;

-- name: assign_claimed
UPDATE predictions SET
    phase = 'assigned', attempt = attempt + 1, version = CASE WHEN pinned THEN version ELSE :version END
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
    started_at = coalesce(started_at, :started_at), output = :output, output_items = :output_items,
    output_bytes = :output_bytes, logs = :logs, log_bytes = :log_bytes, error = :error, metrics = :metrics
WHERE id = :prediction AND attempt = :attempt AND phase <> 'ended'
    AND EXISTS (SELECT 1 FROM attempts WHERE prediction = :prediction AND attempt = :attempt AND holder = :worker
            AND link_epoch = :epoch)
RETURNING id;

-- name: end_prediction
-- Ends a prediction by the server's own decision (cancel, struck out); the attempt is the fence.
-- With `renewals`, only if the lease has not moved since the caller saw it; with `unstarted`, only if it has not started.
-- What is to be aborted and has started is canceled.
UPDATE predictions SET
    phase = 'ended', status = CASE WHEN :status = 'aborted' AND coalesce(started_at, :started_at) IS NOT NULL
        THEN 'canceled' ELSE :status END, completed_at = :completed_at, error = :error, output_items = :output_items,
    log_bytes = :log_bytes, metrics = :metrics, started_at = coalesce(started_at, :started_at),
    struck_out = :struck_out
WHERE id = :prediction AND attempt = :attempt AND phase <> 'ended' AND (NOT :unstarted OR started_at IS NULL)
    AND (:renewals IS NULL OR EXISTS (
        SELECT 1 FROM attempts WHERE prediction = :prediction AND attempt = :attempt AND renewals = :renewals))
RETURNING id;

-- name: drop_entries
DELETE FROM queue_entries WHERE prediction = :prediction;

-- name: end_attempt
-- What an earlier end recorded stays, except that the holder's own word (`overrules`) replaces the guess that it was
-- lost. An attempt never ends before its prediction has moved on: one that a returning worker took up again goes on.
UPDATE attempts SET
    started_at = coalesce(started_at, :started_at),
    ended_at = CASE WHEN :overrules AND outcome = 'lost' THEN :now ELSE coalesce(ended_at, :now) END,
    outcome = CASE WHEN :overrules AND outcome = 'lost' THEN :outcome ELSE coalesce(outcome, :outcome) END,
    reason = CASE WHEN :overrules AND outcome = 'lost' THEN :reason ELSE coalesce(reason, :reason) END,
    slot_freed_at = CASE WHEN :slot_free THEN coalesce(slot_freed_at, :now) ELSE slot_freed_at END,
    output_items = max(output_items, :output_items), log_bytes = max(log_bytes, :log_bytes)
WHERE prediction = :prediction AND attempt = :attempt AND NOT EXISTS (
    SELECT 1 FROM predictions AS p
    WHERE p.id = :prediction AND p.attempt = :attempt AND p.phase IN ('assigned', 'running'));

-- name: requeue_prediction
-- Back to the queue, or `parked` before that. With `renewals`, only if the lease has not moved since the caller saw it.
UPDATE predictions SET
    phase = :phase, strikes = strikes + :strike, started_at = coalesce(started_at, :started_at),
    status = CASE WHEN coalesce(started_at, :started_at) IS NULL THEN 'starting' ELSE 'processing' END,
    output_items = NULL, log_bytes = 0
WHERE id = :prediction AND attempt = :attempt AND phase IN ('assigned', 'running')
    AND (:renewals IS NULL OR EXISTS (
        SELECT 1 FROM attempts WHERE prediction = :prediction AND attempt = :attempt AND renewals = :renewals))
RETURNING id;

-- name: append_chunks
-- `chunks` is a JSON array of [prediction, attempt, kind, position, data]; a longer chunk replaces the
-- shorter one that begins at the same position: both are pieces of one stream.
INSERT INTO chunks (prediction, attempt, kind, position, data)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(:chunks) WHERE true
ON CONFLICT (prediction, attempt, kind, position) DO UPDATE SET data = excluded.data
WHERE length(excluded.data) > length(chunks.data);

-- name: checkpoint_chunks
-- As `append_chunks`, for attempts that have not ended and whose link is still the one that wrote the checkpoint:
-- `chunks` is a JSON array of [chunk, link_epoch].
INSERT INTO chunks (prediction, attempt, kind, position, data)
SELECT c.value ->> '$[0][0]', c.value ->> '$[0][1]', c.value ->> '$[0][2]', c.value ->> '$[0][3]', c.value ->> '$[0][4]'
FROM json_each(:chunks) AS c
CROSS JOIN attempts AS a ON a.prediction = c.value ->> '$[0][0]' AND a.attempt = c.value ->> '$[0][1]'
WHERE a.link_epoch = c.value ->> 1 AND a.ended_at IS NULL
ON CONFLICT (prediction, attempt, kind, position) DO UPDATE SET data = excluded.data
WHERE length(excluded.data) > length(chunks.data);

-- name: checkpoint_attempts
-- `attempts` is a JSON array of [prediction, attempt, started_at, output_items, log_bytes, link_epoch].
UPDATE attempts SET
    started_at = coalesce(attempts.started_at, c.started_at),
    output_items = max(attempts.output_items, coalesce(c.output_items, 0)),
    log_bytes = max(attempts.log_bytes, c.log_bytes)
FROM (
    SELECT value ->> 0 AS prediction, value ->> 1 AS attempt, value ->> 2 AS started_at, value ->> 3 AS output_items,
        value ->> 4 AS log_bytes, value ->> 5 AS epoch
    FROM json_each(:attempts)
) AS c
-- The plus keeps the planner from walking through all open attempts.
WHERE attempts.prediction = c.prediction AND attempts.attempt = c.attempt AND +attempts.ended_at IS NULL
    AND attempts.link_epoch = c.epoch
RETURNING attempts.prediction, attempts.attempt;

-- name: checkpoint_predictions
UPDATE predictions SET
    phase = 'running', status = 'processing', started_at = coalesce(predictions.started_at, c.started_at),
    output_items = CASE WHEN c.output_items > coalesce(predictions.output_items, 0) THEN c.output_items
                        ELSE predictions.output_items END,
    log_bytes = max(predictions.log_bytes, c.log_bytes)
FROM (
    SELECT value ->> 0 AS prediction, value ->> 1 AS attempt, value ->> 2 AS started_at, value ->> 3 AS output_items,
        value ->> 4 AS log_bytes, value ->> 5 AS epoch
    FROM json_each(:attempts)
) AS c
WHERE predictions.id = c.prediction AND predictions.attempt = c.attempt
    AND predictions.phase IN ('assigned', 'running')
    AND EXISTS (
        SELECT 1 FROM attempts AS a
        WHERE a.prediction = c.prediction AND a.attempt = c.attempt AND a.link_epoch = c.epoch);

-- name: put_result
INSERT INTO chunks (prediction, attempt, kind, position, data)
SELECT :prediction, :attempt, 'result', :position, :data
WHERE EXISTS (
    SELECT 1 FROM attempts WHERE prediction = :prediction AND attempt = :attempt AND holder = :worker
        AND ended_at IS NULL)
ON CONFLICT (prediction, attempt, kind, position) DO UPDATE SET data = excluded.data
RETURNING position;

-- name: drop_results
DELETE FROM chunks WHERE prediction = :prediction AND attempt = :attempt AND kind = 'result';

-- name: result_bytes
SELECT coalesce(max(position + length(CAST(data AS BLOB))), 0) FROM chunks
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
WHERE account = :account AND model = :model AND (:status IS NULL OR status = :status)
    AND id < :before AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id DESC LIMIT :limit;

-- name: list_predictions_upwards
-- The page before a cursor: the nearest newer ones, oldest first.
SELECT id, account, catalog, model, version, pinned, flow, phase, status, attempt, strikes, created_at, started_at,
    completed_at, deadline, input, output, output_items, output_bytes, logs, log_bytes, error, metrics, webhook,
    webhook_events, stream_key, data_removed, client_id, run_limit_s, start_by, struck_out, requeued_as,
    webhook_origin, token, routed, route, hops, dialect
FROM predictions
WHERE account = :account AND (:status IS NULL OR status = :status) AND (:model IS NULL OR model = :model)
    AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id LIMIT :limit;

-- name: input_parts
-- All parts or none: what goes part by part is hidden first.
SELECT i.prediction, i.data FROM inputs AS i JOIN predictions AS p ON p.id = i.prediction
WHERE i.prediction IN (SELECT value FROM json_each(:predictions)) AND p.data_removed = 0
ORDER BY i.prediction, i.part;

-- name: read_chunks
-- `attempts` is a JSON array of [prediction, attempt]. All chunks or none, as with inputs.
SELECT c.prediction, c.attempt, c.kind, c.position, c.data
FROM json_each(:attempts) AS wanted
JOIN chunks AS c ON c.prediction = wanted.value ->> 0 AND c.attempt = wanted.value ->> 1
JOIN predictions AS p ON p.id = c.prediction AND p.data_removed = 0
ORDER BY c.prediction, c.kind, c.position;

-- name: ready_queues
SELECT DISTINCT queue FROM flows WHERE waiting > 0;

-- name: list_attempts
SELECT attempt, holder, claimed_at, started_at, ended_at, outcome, reason, slot_freed_at
FROM attempts WHERE prediction = :prediction ORDER BY attempt;
