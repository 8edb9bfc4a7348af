-- What has to be empty when nothing is under way.

-- name: open_attempts
SELECT prediction, attempt, holder, ended_at, slot_freed_at FROM attempts WHERE ended_at IS NULL OR slot_freed_at IS NULL;

-- name: unsettled_flows
SELECT queue, flow, waiting FROM flows WHERE waiting <> 0;

-- name: left_entries
SELECT prediction, queue FROM queue_entries;

-- name: unended_predictions
SELECT id, phase, status FROM predictions WHERE phase <> 'ended' OR completed_at IS NULL;

-- name: wrong_ends
-- Predictions whose last attempt tells another end than they do; one that waits after a loss may be canceled.
SELECT p.id, p.status, a.outcome FROM predictions AS p
LEFT JOIN attempts AS a ON a.prediction = p.id AND a.attempt = p.attempt
WHERE (p.attempt > 0 OR p.status <> 'canceled') AND (a.outcome IS NULL OR a.outcome <> p.status)
    AND NOT (p.status = 'canceled' AND a.outcome = 'lost');
