-- What a route is decided on: what waits, and what the workers do.

-- name: waiting_routes
-- The accounts and models of what waits and may go to a provider: one seek for each, however many wait.
WITH RECURSIVE found (account, model) AS (
    (SELECT account, model FROM predictions WHERE routed = 1 AND phase = 'queued' ORDER BY account, model LIMIT 1)
    UNION ALL
    SELECT next.account, next.model
    FROM found CROSS JOIN LATERAL (
        SELECT p.account, p.model FROM predictions AS p
        WHERE p.routed = 1 AND p.phase = 'queued' AND (p.account, p.model) > (found.account, found.model)
        ORDER BY p.account, p.model LIMIT 1
    ) AS next
)
SELECT account, model FROM found;

-- name: candidates
-- In the order in which they came. `queue` is one in which it waits.
SELECT p.id, p.account, p.token, p.catalog, p.model, p.version, p.pinned, p.flow, p.attempt, p.created_at, p.route,
    p.hops, p.run_limit_s, p.start_by, p.deadline,
    (SELECT min(e.queue) FROM queue_entries AS e WHERE e.prediction = p.id), p.webhook_origin
FROM predictions AS p
WHERE p.account = :account AND p.model = :model AND p.routed = 1 AND p.phase = 'queued' AND p.id > :after
ORDER BY p.id LIMIT :limit;

-- name: keep_queued
-- Holds a queued prediction for the rest of the unit.
UPDATE predictions SET routed = 1
WHERE id = :prediction AND phase = 'queued' AND attempt = :attempt
RETURNING id;

-- name: fleet_of
-- The workers of these accounts with each of their offers of the model, how many slots of that offer are taken, and what
-- the model requires and their machine has not.
SELECT w.id, w.account, w.state, w.quarantine, offer.value ->> 'version', (offer.value ->> 'slots')::bigint,
    (SELECT count(*) FROM attempts AS a
        WHERE a.holder = w.id AND a.slot_freed_at IS NULL
            AND a.queue IN (
                w.account || '/' || :owner::text || '/' || :name::text, w.account || ':' || (offer.value ->> 'version'))),
    w.agent, w.setup_since, coalesce(w.unmet::json ->> (offer.place - 1)::int, '')
FROM workers AS w, json_array_elements(w.offers::json) WITH ORDINALITY AS offer (value, place)
WHERE w.account = ANY (ARRAY(SELECT json_array_elements_text(:catalogs::json)))
    AND offer.value ->> 'owner' = :owner AND offer.value ->> 'name' = :name
ORDER BY w.id, offer.place;

-- name: waiting_flows
-- `queues` is a JSON array.
SELECT queue, flow, waiting, virtual_time FROM flows
WHERE queue = ANY (ARRAY(SELECT json_array_elements_text(:queues::json))) AND waiting > 0
ORDER BY queue, virtual_time;

-- name: entries_ahead
-- How many entries of its own flow come before that of a prediction; no row where it has none that is ready.
SELECT (
    SELECT count(*) FROM queue_entries AS e
    WHERE e.queue = mine.queue AND e.flow = mine.flow AND e.not_before IS NULL
        AND (e.priority, e.rank, e.prediction) < (mine.priority, mine.rank, mine.prediction))
FROM queue_entries AS mine
WHERE mine.prediction = :prediction AND mine.queue = :queue AND mine.not_before IS NULL;

-- name: running_attempts
-- What takes slots of workers, of the predictions that came from these queues.
SELECT prediction, holder, claimed_at, started_at FROM attempts
WHERE slot_freed_at IS NULL AND substr(holder, 1, 9) <> 'provider:'
    AND queue IN (SELECT json_array_elements_text(:queues::json));

