-- The log of messages to webhooks, as those who look at it need it.

-- name: last_tries
SELECT DISTINCT ON (t.delivery) t.delivery, t.try, t.at, t.duration_us, t.status, t.error, t.answer
FROM json_array_elements_text(:deliveries::json) AS d (id)
JOIN delivery_tries AS t ON t.delivery = d.id
ORDER BY t.delivery, t.try DESC;

-- name: hurry_delivery
-- One that waits for its next try is due now; what is being tried has a `next_try_at` before `busy_until`.
UPDATE deliveries SET next_try_at = :now, give_up_at = CASE WHEN event = 'completed' THEN NULL ELSE give_up_at END
WHERE id = :id AND state = 'pending' AND tries = :tries AND next_try_at > :busy_until
RETURNING id;
