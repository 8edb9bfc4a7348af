-- What models require, and what the machines of workers have of that.

-- name: model_requirements
SELECT account, owner, name, requirements FROM models WHERE requirements IS NOT NULL;

-- name: workers_with_model
-- A page of the workers of an account that offer the model, whatever their state, by id.
SELECT w.id, w.link_epoch, w.state, w.machine, w.offers, w.unmet FROM workers AS w
WHERE w.account = :account AND w.id > :after AND EXISTS (
    SELECT 1 FROM json_array_elements(w.offers::json) AS offer
    WHERE offer ->> 'owner' = :owner::text AND offer ->> 'name' = :name::text)
ORDER BY w.id LIMIT :limit;

-- name: note_unmet
-- `found` is a JSON array of [worker, link_epoch, unmet]; a worker that has opened a newer link is left alone.
UPDATE workers SET unmet = f.value ->> 2
FROM json_array_elements(:found::json) AS f (value)
WHERE workers.id = f.value ->> 0 AND workers.link_epoch = (f.value ->> 1)::bigint;

-- name: note_machine
UPDATE workers SET machine = :machine, unmet = :unmet WHERE id = :worker AND link_epoch = :epoch;
