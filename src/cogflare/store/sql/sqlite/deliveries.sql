-- Messages to webhooks: who tries which, what came of it, and the log of them.

-- name: waiting_hosts
-- The hosts after one that have pending messages, each with the times of its first and its last: two seeks a host.
WITH RECURSIVE hosts (host, place) AS (
    SELECT (SELECT min(d.host) FROM deliveries AS d WHERE d.state = 'pending' AND d.host > :after), 1
    UNION ALL
    SELECT (SELECT min(d.host) FROM deliveries AS d WHERE d.state = 'pending' AND d.host > hosts.host), place + 1
    FROM hosts WHERE hosts.host IS NOT NULL AND place < :limit
)
SELECT host,
    (SELECT min(d.next_try_at) FROM deliveries AS d WHERE d.state = 'pending' AND d.host = hosts.host),
    (SELECT max(d.next_try_at) FROM deliveries AS d WHERE d.state = 'pending' AND d.host = hosts.host)
FROM hosts WHERE host IS NOT NULL;

-- name: hurry_deliveries
-- What waits for long is due now unless its last try is known and was not in what is the future now: the clock was set
-- back.
UPDATE deliveries SET next_try_at = :now
WHERE state = 'pending' AND host = :host AND next_try_at > :ahead
    AND NOT EXISTS (
        SELECT 1 FROM delivery_tries AS t
        WHERE t.delivery = deliveries.id AND t.try = deliveries.tries AND t.at <= :ahead);

-- name: claim_deliveries
-- Messages to a host that are due, for one try each: nobody else may before `until`. One of a prediction of which another
-- is being tried waits, and so does one about what came after a creation, or a start, that is still to be told.
UPDATE deliveries SET tries = tries + 1, next_try_at = :until, give_up_at = coalesce(give_up_at, :give_up_at)
WHERE id IN (
    SELECT d.id FROM deliveries AS d
    WHERE d.state = 'pending' AND d.host = :host AND d.next_try_at <= :now
        AND NOT EXISTS (
            SELECT 1 FROM deliveries AS o
            WHERE o.prediction = d.prediction AND o.id <> d.id AND o.state = 'pending'
                AND (o.next_try_at > :now OR o.event = 'created' OR (o.event = 'start' AND d.event = 'completed')))
    ORDER BY d.next_try_at LIMIT :limit)
RETURNING id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at;

-- name: extend_delivery
-- More time for the one who tries.
UPDATE deliveries SET next_try_at = :until WHERE id = :id AND state = 'pending' AND tries = :tries RETURNING id;

-- name: settle_delivery
-- What became of a try. Whoever has taken over meanwhile tries again, unless it has arrived.
UPDATE deliveries SET state = :state, next_try_at = :next_try_at, ended_at = :ended_at
WHERE id = :id AND state = 'pending' AND (tries = :tries OR :state = 'delivered')
RETURNING id;

-- name: drop_delivery
DELETE FROM deliveries WHERE id = :id AND state = 'pending' AND tries = :tries;

-- name: record_try
INSERT INTO delivery_tries (delivery, try, at, duration_us, status, error, answer)
VALUES (:delivery, :try, :at, :duration_us, :status, :error, :answer)
ON CONFLICT (delivery, try) DO NOTHING;

-- name: announce
-- Messages about predictions that go on, with their only try: `messages` is a JSON array of
-- [id, prediction, attempt, event, host, items, log_bytes]. None where the attempt is over or another message is pending.
INSERT INTO deliveries (
    id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, items, log_bytes
)
SELECT m.value ->> 0, p.account, p.id, m.value ->> 3, p.webhook, m.value ->> 4, 'pending', 1, :until, :now, :now,
    m.value ->> 5, m.value ->> 6
FROM json_each(:messages) AS m
CROSS JOIN predictions AS p ON p.id = m.value ->> 1
WHERE p.attempt = m.value ->> 2 AND p.phase <> 'ended' AND p.webhook IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM deliveries AS o WHERE o.prediction = p.id AND o.state = 'pending')
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: announce_late
-- A message about a prediction that has ended before it was told of, with its only try.
INSERT INTO deliveries (
    id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, items, log_bytes
)
SELECT :id, p.account, p.id, :event, p.webhook, :host, 'pending', 1, :until, :now, :now, :items, :log_bytes
FROM predictions AS p WHERE p.id = :prediction AND p.phase = 'ended' AND p.webhook IS NOT NULL
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: announce_creation
-- The message about the creation of a prediction, in the unit that creates it. It has one try; who dies over it leaves
-- that to another.
INSERT INTO deliveries (id, account, prediction, event, url, host, state, next_try_at, give_up_at, created_at)
VALUES (:id, :account, :prediction, 'created', :url, :host, 'pending', :now, :now, :now);

-- name: announced
-- What was told of a prediction that goes on, before its end.
SELECT event, created_at, items, log_bytes FROM deliveries
WHERE prediction = :prediction AND event NOT IN ('created', 'completed') ORDER BY id;

-- name: get_delivery
SELECT id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at
FROM deliveries WHERE id = :id AND account = :account;

-- name: list_deliveries
SELECT id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at
FROM deliveries
WHERE account = :account AND id < :before AND (:state IS NULL OR state = :state)
    AND (:event IS NULL OR event = :event)
ORDER BY id DESC LIMIT :limit;

-- name: list_undelivered
SELECT id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at
FROM deliveries
WHERE account = :account AND id < :before AND state <> 'delivered' AND state = :state
    AND (:event IS NULL OR event = :event)
ORDER BY id DESC LIMIT :limit;

-- name: list_deliveries_of
SELECT id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at
FROM deliveries
WHERE prediction = :prediction AND account = :account AND id < :before AND (:state IS NULL OR state = :state)
    AND (:event IS NULL OR event = :event)
ORDER BY id DESC LIMIT :limit;

-- name: list_tries
SELECT try, at, duration_us, status, error, answer FROM delivery_tries WHERE delivery = :delivery ORDER BY try;

-- name: replay_delivery
-- One that is over is pending again; what is sent once is sent once more.
UPDATE deliveries SET
    state = 'pending', next_try_at = :now, ended_at = NULL,
    give_up_at = CASE WHEN event = 'completed' THEN NULL ELSE :now END
WHERE id = :id AND account = :account AND state <> 'pending'
RETURNING id, account, prediction, event, url, host, state, tries, next_try_at, give_up_at, created_at, ended_at;

-- name: old_deliveries
SELECT id FROM deliveries WHERE state <> 'pending' AND ended_at < :cutoff ORDER BY ended_at LIMIT :limit;

-- name: delete_old_tries
DELETE FROM delivery_tries WHERE delivery IN (
    SELECT id FROM deliveries
    WHERE id IN (SELECT value FROM json_each(:deliveries)) AND state <> 'pending' AND ended_at < :cutoff);

-- name: delete_old_deliveries
DELETE FROM deliveries
WHERE id IN (SELECT value FROM json_each(:deliveries)) AND state <> 'pending' AND ended_at < :cutoff
RETURNING id;
