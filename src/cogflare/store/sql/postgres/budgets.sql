-- What may be spent at providers, and what is spent or reserved. Money is in millionths of a dollar.

-- name: put_budget
INSERT INTO budgets (account, scope, ref, period, amount, changed_at)
VALUES (:account, :scope, :ref, :period, :amount, :changed_at)
ON CONFLICT (account, scope, ref, period) DO UPDATE SET
    amount = excluded.amount, changed_at = excluded.changed_at;

-- name: list_budgets
SELECT scope, ref, period, amount, changed_at FROM budgets WHERE account = :account ORDER BY scope, ref, period;

-- name: remove_budget
DELETE FROM budgets WHERE account = :account AND scope = :scope AND ref = :ref AND period = :period RETURNING scope;

-- name: spent
-- `since` is a JSON array of days and months.
SELECT scope, ref, since, amount FROM spending
WHERE account = :account AND since IN (SELECT json_array_elements_text(:since::json));

-- name: reserved
SELECT r.scope, r.ref, r.since, sum(r.amount)::bigint, max(r.is_rest)
FROM errands AS e JOIN errand_reservations AS r ON r.prediction = e.prediction AND r.attempt = e.attempt
WHERE e.account = :account AND e.state <> 'over' GROUP BY r.scope, r.ref, r.since;

-- name: reserve
-- Reserves `amount` of what `limit` leaves; without an amount all that is left, if anything is and nobody else has such a
-- rest: what costs who knows what goes one at a time. Returns no row where that is too little. `spend_reserved` adds it to what is spent: nobody comes between, for the unit holds the lock of flows
-- (and looks only after it has it).
INSERT INTO errand_reservations (prediction, attempt, scope, ref, since, amount, is_rest)
SELECT :prediction::text, :attempt::bigint, :scope::text, :ref::text, :since::text,
    coalesce(:amount::bigint, :limit::bigint - spent), (:amount::bigint IS NULL)::int
FROM (SELECT coalesce((
    SELECT amount FROM spending WHERE account = :account AND scope = :scope AND ref = :ref AND since = :since), 0) AS spent) AS so_far
WHERE CASE WHEN :amount IS NOT NULL THEN spent + :amount <= :limit
    ELSE spent < :limit AND NOT EXISTS (
        SELECT 1 FROM errands AS e JOIN errand_reservations AS r ON r.prediction = e.prediction AND r.attempt = e.attempt
        WHERE e.account = :account AND e.state <> 'over' AND r.is_rest = 1
            AND r.scope = :scope AND r.ref = :ref AND r.since = :since) END
RETURNING amount;

-- name: spend_reserved
INSERT INTO spending (account, scope, ref, since, amount)
SELECT :account::text, scope, ref, since, amount FROM errand_reservations
WHERE prediction = :prediction AND attempt = :attempt ORDER BY scope, ref, since
ON CONFLICT (account, scope, ref, since) DO UPDATE SET amount = spending.amount + excluded.amount;

-- name: note_reserved
-- What the errand may cost at least, as far as anybody knows.
UPDATE errands SET reserved = coalesce((
    SELECT min(amount) FROM errand_reservations WHERE prediction = :prediction AND attempt = :attempt AND amount > 0), 0)
WHERE prediction = :prediction AND attempt = :attempt;

-- name: settle_spending
-- The cost takes the place of what was reserved.
UPDATE spending SET amount = spending.amount - r.amount + :cost::bigint
FROM errand_reservations AS r
WHERE r.prediction = :prediction AND r.attempt = :attempt
    AND spending.account = :account AND spending.scope = r.scope AND spending.ref = r.ref AND spending.since = r.since;

-- name: drop_reservations
DELETE FROM errand_reservations WHERE prediction = :prediction AND attempt = :attempt;
