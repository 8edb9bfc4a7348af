-- Where the predictions of an account may run.

-- name: put_route
INSERT INTO routes (account, model, policy, routed, changed_at)
VALUES (:account, :model, :policy, :routed, :now)
ON CONFLICT (account, model) DO UPDATE SET
    policy = excluded.policy, routed = excluded.routed, changed_at = excluded.changed_at;

-- name: remove_route
DELETE FROM routes WHERE account = :account AND model = :model RETURNING model;

-- name: list_routes
SELECT model, policy, changed_at FROM routes WHERE account = :account ORDER BY model;

-- name: mark_routed
-- What goes on follows its model's route, else that of the account, unless the request had a wish of its own. `model` is
-- the one whose route has changed, or empty for the account's. What waits in the queue of a route, which no worker serves,
-- or may come back to it, stays in the hands of who decides.
UPDATE predictions SET routed = CASE
    WHEN EXISTS (SELECT 1 FROM queue_entries AS e WHERE e.prediction = predictions.id AND substr(e.queue, 1, 6) = 'route.')
        THEN 1
    WHEN EXISTS (
        SELECT 1 FROM attempts AS a
        WHERE a.prediction = predictions.id AND a.attempt = predictions.attempt AND substr(a.queue, 1, 6) = 'route.')
        THEN 1
    ELSE coalesce(
        (SELECT r.routed FROM routes AS r WHERE r.account = :account AND r.model = predictions.model),
        (SELECT r.routed FROM routes AS r WHERE r.account = :account AND r.model = ''), 0)
    END
WHERE account = :account AND status IN ('starting', 'processing') AND phase <> 'ended' AND route IS NULL
    AND (:model = '' OR model = :model);
