-- What is kept for how long. Data of ended predictions goes first, in small bites; their records go later.

-- name: prunable_data
-- Ended predictions that still have data, the oldest first, with what lies apart from their rows: rows and bytes.
SELECT p.id, p.data_removed,
    (SELECT count(*) FROM inputs WHERE prediction = p.id) + (SELECT count(*) FROM chunks WHERE prediction = p.id),
    (SELECT coalesce(sum(octet_length(data)), 0) FROM inputs WHERE prediction = p.id)
        + (SELECT coalesce(sum(octet_length(data)), 0) FROM chunks WHERE prediction = p.id)
FROM predictions AS p
WHERE p.phase = 'ended' AND p.data_removed < 2 AND p.completed_at < :cutoff
ORDER BY p.completed_at LIMIT :limit;

-- name: remove_data
-- `state` 1: clients see no data any more; 2: there is none any more.
UPDATE predictions SET
    data_removed = :state, input = NULL, output = NULL, output_items = NULL, output_bytes = NULL, logs = NULL,
    log_bytes = 0
WHERE id IN (SELECT value FROM json_each(:predictions)) AND phase = 'ended' AND data_removed < :state
RETURNING id;

-- name: expire_files
UPDATE files SET state = 'expired' WHERE state <> 'expired' AND prediction IN (
    SELECT id FROM predictions WHERE id IN (SELECT value FROM json_each(:predictions)) AND data_removed > 0);

-- name: drop_inputs
DELETE FROM inputs WHERE prediction IN (
    SELECT id FROM predictions WHERE id IN (SELECT value FROM json_each(:predictions)) AND data_removed > 0);

-- name: drop_chunks
DELETE FROM chunks WHERE prediction IN (
    SELECT id FROM predictions WHERE id IN (SELECT value FROM json_each(:predictions)) AND data_removed > 0);

-- name: drop_some_inputs
DELETE FROM inputs WHERE prediction = :prediction AND part IN (
    SELECT part FROM inputs WHERE prediction = :prediction ORDER BY part LIMIT :limit)
RETURNING part;

-- name: drop_some_chunks
DELETE FROM chunks WHERE prediction = :prediction AND (attempt, kind, position) IN (
    SELECT attempt, kind, position FROM chunks WHERE prediction = :prediction
    ORDER BY attempt, kind, position LIMIT :limit)
RETURNING position;

-- name: prunable_records
-- Predictions without data that ended before `cutoff`, all of whose slots are free and errands over; `below`
-- bounds their ids.
SELECT p.id FROM predictions AS p
WHERE p.id < :below AND p.phase = 'ended' AND p.data_removed = 2 AND p.completed_at < :cutoff
    AND NOT EXISTS (
        SELECT 1 FROM attempts AS a WHERE a.prediction = p.id AND (a.ended_at IS NULL OR a.slot_freed_at IS NULL))
    AND NOT EXISTS (SELECT 1 FROM errands AS e WHERE e.prediction = p.id AND e.state <> 'over')
ORDER BY p.id LIMIT :limit;

-- name: delete_attempts
DELETE FROM attempts WHERE prediction IN (SELECT value FROM json_each(:predictions));

-- name: delete_errands
DELETE FROM errands WHERE prediction IN (SELECT value FROM json_each(:predictions));

-- name: delete_tries
DELETE FROM delivery_tries WHERE delivery IN (
    SELECT id FROM deliveries WHERE prediction IN (SELECT value FROM json_each(:predictions)));

-- name: delete_deliveries
DELETE FROM deliveries WHERE prediction IN (SELECT value FROM json_each(:predictions));

-- name: delete_predictions
DELETE FROM predictions WHERE id IN (SELECT value FROM json_each(:predictions)) AND data_removed = 2 RETURNING id;

-- name: newest_prediction
SELECT created_at FROM predictions WHERE id > '' ORDER BY id DESC LIMIT 1;

-- name: gone_workers
-- Workers that have not been heard of since `cutoff` and have nothing to come back for.
SELECT id FROM workers
WHERE state <> 'online' AND changed_at < :cutoff
    AND NOT EXISTS (SELECT 1 FROM attempts AS a WHERE a.holder = workers.id AND a.ended_at IS NULL)
ORDER BY id LIMIT :limit;

-- name: free_slots_of_gone
UPDATE attempts SET slot_freed_at = :now
WHERE holder = :worker AND slot_freed_at IS NULL AND ended_at IS NOT NULL
    AND EXISTS (SELECT 1 FROM workers WHERE id = :worker AND state <> 'online' AND changed_at < :cutoff);

-- name: delete_gone_worker
DELETE FROM workers WHERE id = :worker AND state <> 'online' AND changed_at < :cutoff RETURNING id;

-- name: flows_after
SELECT queue, flow FROM flows WHERE (queue, flow) > (:queue, :flow) ORDER BY queue, flow LIMIT :limit;

-- name: lock_flows
SELECT 1;

-- name: prune_flows
-- Flows without which everything stays as fair as it is. Where others wait in their queue, a flow that is not ahead of
-- the least of them would begin there anyway. Where none waits, all of the queue's flows would begin level.
DELETE FROM flows
WHERE (queue, flow) > (:queue, :flow) AND (queue, flow) <= (:last_queue, :last_flow) AND waiting = 0
    AND virtual_time <= coalesce(
        (SELECT min(g.virtual_time) FROM flows AS g WHERE g.queue = flows.queue AND g.waiting > 0), virtual_time);

-- name: prune_spending
-- `cutoff` is a day; a month comes before each of its days.
DELETE FROM spending WHERE (account, scope, ref, since) IN (
    SELECT account, scope, ref, since FROM spending WHERE since < :cutoff ORDER BY since LIMIT :limit)
RETURNING since;

-- name: prune_costs
DELETE FROM costs WHERE (account, day, token, model, provider_name) IN (
    SELECT account, day, token, model, provider_name FROM costs WHERE day < :cutoff ORDER BY day LIMIT :limit)
RETURNING day;

-- name: prune_usage
DELETE FROM usage WHERE (account, day, model) IN (
    SELECT account, day, model FROM usage WHERE day < :cutoff ORDER BY day LIMIT :limit)
RETURNING day;

-- name: prune_run_times
-- Those that no run was added to since `cutoff`.
DELETE FROM run_times WHERE (catalog, model, version, gpu) IN (
    SELECT catalog, model, version, gpu FROM run_times WHERE changed_at < :cutoff ORDER BY changed_at LIMIT :limit)
RETURNING changed_at;
