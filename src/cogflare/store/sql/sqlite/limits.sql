-- Predictions whose time is over, and what still waits or runs.

-- name: due_predictions
-- `kind` says what was reached: the client's deadline, or the time by which it had to start.
SELECT due.id, due.kind FROM (
    SELECT id, 'deadline' AS kind FROM predictions WHERE deadline <= :now AND phase <> 'ended'
    UNION ALL
    SELECT id, 'start' AS kind FROM predictions WHERE start_by <= :now AND started_at IS NULL AND phase <> 'ended'
) AS due LIMIT :limit;

-- name: waiting_entries
-- What waits for an account, over all queues.
SELECT coalesce(sum(waiting), 0) FROM flows WHERE flow = :flow AND waiting > 0;

-- name: live_predictions
-- Those with this status (of the two that are not terminal) that a filter matches, newest first.
SELECT id FROM predictions
WHERE account = :account AND status = :status AND (:model IS NULL OR model = :model)
    AND id < :before AND id > :after AND created_at >= :created_from AND created_at < :created_to
ORDER BY id DESC LIMIT :limit;
