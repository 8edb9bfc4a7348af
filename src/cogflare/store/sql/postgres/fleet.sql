-- Workers, their links, and the leases of what they hold.

-- name: limited_token
-- A token that lets only so many workers connect, kept from others until the unit ends: they count one after the other.
SELECT id FROM tokens WHERE id = :token AND max_connections IS NOT NULL FOR UPDATE;

-- name: token_has_room
-- Whether fewer workers are connected with the token than it lets, not counting this one, which may be coming back.
SELECT 1 WHERE NOT EXISTS (
    SELECT 1 FROM tokens AS t WHERE t.id = :token AND t.max_connections <= (
        SELECT count(*) FROM workers AS w WHERE w.token = t.id AND w.state = 'online' AND w.id <> :worker));

-- name: open_link
-- Raises the epoch; a worker id that belongs to another account returns no row. A new agent process has set its model
-- up again: it comes out of quarantine, one loss away (`probation`) from the next.
INSERT INTO workers (
    id, account, token, name, instance, node, link_epoch, state, offers, agent, machine, unmet, connected_at, changed_at
) VALUES (
    :id, :account, :token, :name, :instance, :node, 1, 'online', :offers, :agent, :machine, :unmet, :now, :now)
ON CONFLICT (id) DO UPDATE SET
    token = excluded.token, name = excluded.name, instance = excluded.instance, node = excluded.node,
    link_epoch = workers.link_epoch + 1, state = 'online', offers = excluded.offers, agent = excluded.agent,
    machine = excluded.machine, unmet = excluded.unmet,
    connected_at = excluded.connected_at, changed_at = excluded.changed_at, setup_since = NULL,
    losses = CASE WHEN workers.quarantine IS NOT NULL AND workers.instance <> excluded.instance THEN :probation::bigint
                  ELSE workers.losses END,
    quarantined_at = CASE WHEN workers.instance <> excluded.instance THEN NULL ELSE workers.quarantined_at END,
    quarantine = CASE WHEN workers.instance <> excluded.instance THEN NULL ELSE workers.quarantine END
    WHERE workers.account = excluded.account
RETURNING link_epoch, losses, quarantines, quarantine, quarantined_at;

-- name: close_link
UPDATE workers SET state = :state, changed_at = :now WHERE id = :id AND link_epoch = :epoch;

-- name: release_node
-- A node that starts has no links yet.
UPDATE workers SET state = 'away', changed_at = :now WHERE (:node::text IS NULL OR node = :node) AND state = 'online'
RETURNING id;

-- name: readopt_predictions
-- What a rescuer queued again and nobody claimed goes on where it still runs, as far as it had come; a strike that it
-- was given is taken back, for nothing was lost. `held` is a JSON array of [prediction, attempt]. All that is current
-- is locked, so that no rescuer comes between this and the statements that follow in the unit.
WITH current AS (
    SELECT p.id, p.attempt, p.phase
    FROM json_array_elements(:held::json) AS held (value)
    JOIN predictions AS p ON p.id = held.value ->> 0 AND p.attempt = (held.value ->> 1)::bigint
    ORDER BY p.id FOR UPDATE OF p
)
UPDATE predictions SET
    phase = CASE WHEN a.started_at IS NULL THEN 'assigned' ELSE 'running' END,
    strikes = greatest(0, strikes - CASE WHEN a.started_at IS NULL THEN 0 ELSE 1 END),
    output_items = nullif(a.output_items, 0), log_bytes = a.log_bytes
FROM current JOIN attempts AS a ON a.prediction = current.id AND a.attempt = current.attempt
WHERE predictions.id = current.id AND current.phase IN ('queued', 'parked') AND a.holder = :worker;

-- name: drop_held_entries
DELETE FROM queue_entries WHERE prediction IN (
    SELECT p.id FROM json_array_elements(:held::json) AS held (value)
    JOIN predictions AS p ON p.id = held.value ->> 0 AND p.attempt = (held.value ->> 1)::bigint
    WHERE p.phase IN ('assigned', 'running'));

-- name: adopt_attempts
-- The listed attempts that are current go on under the new link, with the positions that are committed.
UPDATE attempts SET
    link_epoch = (SELECT link_epoch FROM workers WHERE id = :worker), renewals = renewals + 1,
    ended_at = NULL, outcome = NULL, reason = NULL, slot_freed_at = NULL
WHERE holder = :worker
    AND (prediction, attempt) IN (SELECT value ->> 0, (value ->> 1)::bigint FROM json_array_elements(:held::json))
    AND EXISTS (
        SELECT 1 FROM predictions AS p
        WHERE p.id = attempts.prediction AND p.attempt = attempts.attempt AND p.phase IN ('assigned', 'running'))
RETURNING prediction, attempt, started_at, output_items, log_bytes;

-- name: free_unlisted
-- A hello that does not list an ended attempt says that its slot is free.
UPDATE attempts SET slot_freed_at = :now
WHERE holder = :worker AND slot_freed_at IS NULL AND ended_at IS NOT NULL
    AND (prediction, attempt) NOT IN (SELECT value ->> 0, (value ->> 1)::bigint FROM json_array_elements(:held::json));

-- name: free_slots
-- What goes on over a newer link keeps its slot, whatever an older one still says.
UPDATE attempts SET slot_freed_at = :now
WHERE holder = :worker AND slot_freed_at IS NULL AND (ended_at IS NOT NULL OR link_epoch = :epoch)
    AND (prediction, attempt) IN (SELECT value ->> 0, (value ->> 1)::bigint FROM json_array_elements(:held::json));

-- name: live_of
-- The attempts of a worker that have not ended, while this link is its newest.
SELECT a.prediction, a.attempt, a.renewals FROM attempts AS a
JOIN workers AS w ON w.id = a.holder
WHERE a.holder = :worker AND a.slot_freed_at IS NULL AND a.ended_at IS NULL
    AND w.link_epoch = :epoch;

-- name: renew
-- Renews what is listed and still wanted; returns what was renewed.
UPDATE attempts SET renewals = renewals + 1
WHERE holder = :worker AND slot_freed_at IS NULL AND ended_at IS NULL
    AND (SELECT link_epoch FROM workers WHERE id = :worker) = :epoch
    AND (prediction, attempt) IN (SELECT value ->> 0, (value ->> 1)::bigint FROM json_array_elements(:held::json))
    AND EXISTS (
        SELECT 1 FROM predictions AS p
        WHERE p.id = attempts.prediction AND p.attempt = attempts.attempt AND p.phase IN ('assigned', 'running'))
RETURNING prediction, attempt;

-- name: live_attempts
-- Those of workers: what a provider runs has no lease.
SELECT prediction, attempt, holder, renewals FROM attempts
WHERE ended_at IS NULL AND substr(holder, 1, 9) <> 'provider:';

-- name: occupied_slots
-- Slots that are taken, whether or not the attempt in them has ended.
SELECT prediction, attempt, holder, ended_at FROM attempts WHERE slot_freed_at IS NULL;

-- name: get_attempt
SELECT a.holder, a.link_epoch, a.renewals, a.started_at, a.ended_at, a.outcome, a.output_items, a.log_bytes, p.attempt,
    p.phase, a.queue
FROM attempts AS a JOIN predictions AS p ON p.id = a.prediction
WHERE a.prediction = :prediction AND a.attempt = :attempt;

-- name: list_workers
SELECT w.id, w.account, w.name, w.node, w.link_epoch, w.state, w.offers, w.agent, w.connected_at, w.changed_at,
    w.quarantine, w.quarantined_at, w.machine, w.unmet, w.setup_since, w.token,
    (SELECT count(*) FROM attempts AS a WHERE a.holder = w.id AND a.slot_freed_at IS NULL)
FROM workers AS w
WHERE (:account::text IS NULL OR w.account = :account) AND w.id > :after ORDER BY w.id LIMIT :limit;

-- name: get_worker
SELECT w.id, w.account, w.name, w.node, w.link_epoch, w.state, w.offers, w.agent, w.connected_at, w.changed_at,
    w.quarantine, w.quarantined_at, w.machine, w.unmet, w.setup_since, w.token,
    (SELECT count(*) FROM attempts AS a WHERE a.holder = w.id AND a.slot_freed_at IS NULL)
FROM workers AS w WHERE w.id = :id;

-- name: worker_offerings
SELECT id, account, name, offers, agent FROM workers
WHERE id IN (SELECT json_array_elements_text(:workers::json));

-- name: has_other_worker
-- Whether a healthy worker other than `worker` is connected and offers the model, in the version if one is given, on a
-- machine that has what it requires.
SELECT 1 FROM workers AS w, json_array_elements(w.offers::json) WITH ORDINALITY AS offers (offer, place)
WHERE w.state = 'online' AND w.quarantine IS NULL AND w.id <> :worker
    AND w.account IN (SELECT json_array_elements_text(:catalogs::json))
    AND offer ->> 'owner' = :owner::text AND offer ->> 'name' = :name::text
    AND (:version::text IS NULL OR offer ->> 'version' = :version)
    AND coalesce(w.unmet::json ->> (place - 1)::int, '') = ''
LIMIT 1;

-- name: forget_worker
DELETE FROM workers WHERE id = :id AND account = :account AND state <> 'online' RETURNING id;

-- name: find_worker
SELECT id, account, node, state FROM workers WHERE id = :id;

-- name: held_attempt
-- An attempt as the worker of this account that was given it may know it.
SELECT a.ended_at, p.attempt, p.model
FROM attempts AS a
JOIN predictions AS p ON p.id = a.prediction
JOIN workers AS w ON w.id = a.holder
WHERE a.prediction = :prediction AND a.attempt = :attempt AND a.holder = :worker AND w.account = :account;
