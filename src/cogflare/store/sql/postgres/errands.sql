-- Errands: attempts at providers, from the moment before the first call until their cost is known.

-- name: claim_errand
-- The compare-and-set of a claim for a provider. It does not wait: what another node holds is on its way elsewhere.
WITH free AS (
    SELECT id FROM predictions WHERE id = :prediction AND phase = 'queued' AND attempt = :attempt
    FOR UPDATE SKIP LOCKED
)
UPDATE predictions SET
    phase = 'assigned', attempt = predictions.attempt + 1,
    version = CASE WHEN pinned = 1 THEN version ELSE coalesce(:version::text, version) END
FROM free
WHERE predictions.id = free.id
    AND EXISTS (SELECT 1 FROM queue_entries AS e WHERE e.prediction = :prediction AND e.not_before IS NULL)
RETURNING predictions.id;

-- name: errand_room
-- Whether the provider takes another one.
SELECT 1 FROM providers AS p
WHERE p.id = :provider AND (p.paused_until IS NULL OR p.paused_until <= :now) AND :most_open::bigint > (
    SELECT count(*) FROM errands AS e WHERE e.account = :account AND e.provider = :provider AND e.state <> 'over');

-- name: begin_errand_attempt
-- It keeps a queue of the prediction, so that it can go back there.
INSERT INTO attempts (prediction, attempt, claim, queue, flow, holder, link_epoch, claimed_at)
SELECT e.prediction, :attempt::bigint, :claim::text, e.queue, e.flow, :holder::text, 1, :now::bigint
FROM queue_entries AS e WHERE e.prediction = :prediction ORDER BY e.queue LIMIT 1;

-- name: insert_errand
INSERT INTO errands (
    prediction, attempt, account, token, model, provider, provider_name, node, epoch, state, mark, terms, decision,
    created_at, reserved
) VALUES (
    :prediction, :attempt, :account, :token, :model, :provider, :provider_name, :node, 1, 'intent', :mark, :terms,
    :decision, :now, 0
);

-- name: submit_errand
UPDATE errands SET state = 'submitted', remote_id = :remote_id, submitted_at = :now
WHERE prediction = :prediction AND attempt = :attempt AND epoch = :epoch AND state = 'intent'
RETURNING prediction;

-- name: take_over_errand
UPDATE errands SET epoch = epoch + 1, node = :node
WHERE prediction = :prediction AND attempt = :attempt AND epoch = :epoch AND state <> 'over'
RETURNING prediction, attempt, account, token, model, provider, provider_name, node, epoch, state, mark, terms, decision,
    remote_id, is_refused, is_in_doubt, created_at, submitted_at, ended_at, run_us, reserved, cost;

-- name: take_over_attempt
UPDATE attempts SET link_epoch = :epoch::bigint + 1, renewals = renewals + 1
WHERE prediction = :prediction AND attempt = :attempt AND link_epoch = :epoch;

-- name: settle_errand
UPDATE errands SET
    state = 'over', ended_at = :now, run_us = :run_us, cost = :cost, is_refused = :is_refused,
    is_in_doubt = :is_in_doubt
WHERE prediction = :prediction AND attempt = :attempt AND epoch = :epoch AND state <> 'over'
RETURNING prediction;

-- name: settle_attempt
-- Nobody runs it any more: its slot is free.
UPDATE attempts SET remote_id = :remote_id, cost = :dollars, slot_freed_at = coalesce(slot_freed_at, :now)
WHERE prediction = :prediction AND attempt = :attempt;

-- name: count_cost
-- Of what was in doubt nobody knows whether it ran, so its cost is none that is unknown.
INSERT INTO costs (account, day, token, model, provider_name, runs, unknown, in_doubt, run_us, cost)
SELECT account, to_char(to_timestamp(created_at / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD'), token, model, provider_name, 1,
    CASE WHEN cost IS NULL AND is_in_doubt = 0 THEN 1 ELSE 0 END, is_in_doubt, coalesce(run_us, 0), coalesce(cost, 0)
FROM errands WHERE prediction = :prediction AND attempt = :attempt
ON CONFLICT (account, day, token, model, provider_name) DO UPDATE SET
    runs = costs.runs + 1, unknown = costs.unknown + excluded.unknown, in_doubt = costs.in_doubt + excluded.in_doubt,
    run_us = costs.run_us + excluded.run_us, cost = costs.cost + excluded.cost;

-- name: get_errand
SELECT prediction, attempt, account, token, model, provider, provider_name, node, epoch, state, mark, terms, decision,
    remote_id, is_refused, is_in_doubt, created_at, submitted_at, ended_at, run_us, reserved, cost
FROM errands WHERE prediction = :prediction AND attempt = :attempt;

-- name: errand_by_mark
SELECT prediction, attempt, account, token, model, provider, provider_name, node, epoch, state, mark, terms, decision,
    remote_id, is_refused, is_in_doubt, created_at, submitted_at, ended_at, run_us, reserved, cost
FROM errands WHERE mark = :mark;

-- name: open_errands
SELECT prediction, attempt, account, token, model, provider, provider_name, node, epoch, state, mark, terms, decision,
    remote_id, is_refused, is_in_doubt, created_at, submitted_at, ended_at, run_us, reserved, cost
FROM errands WHERE state <> 'over' AND (:node::text IS NULL OR node = :node);

-- name: errands_of
SELECT prediction, attempt, account, token, model, provider, provider_name, node, epoch, state, mark, terms, decision,
    remote_id, is_refused, is_in_doubt, created_at, submitted_at, ended_at, run_us, reserved, cost
FROM errands WHERE prediction = :prediction ORDER BY attempt;

-- name: open_errand_counts
SELECT provider, count(*) FROM errands WHERE account = :account AND state <> 'over' GROUP BY provider;

-- name: refused_by
SELECT DISTINCT provider FROM errands WHERE prediction = :prediction AND is_refused = 1;

-- name: costs
-- By day; without an account of all of them.
SELECT c.day, c.token, c.model, c.provider_name, sum(c.runs)::bigint, sum(c.unknown)::bigint, sum(c.in_doubt)::bigint,
    sum(c.run_us)::bigint, sum(c.cost)::bigint
FROM accounts AS a JOIN costs AS c ON c.account = a.id
WHERE (:account::text IS NULL OR a.id = :account) AND c.day >= :since AND c.day <= :until
GROUP BY c.day, c.token, c.model, c.provider_name
ORDER BY c.day, c.token, c.model, c.provider_name;

-- name: beat
INSERT INTO nodes (node, beats) VALUES (:node, 1) ON CONFLICT (node) DO UPDATE SET beats = nodes.beats + 1;

-- name: nodes
SELECT node, beats FROM nodes;
