-- Fills a queue faster than creates do: `rows` is a JSON array of [id, flow].

-- name: seed_predictions
INSERT INTO predictions (
    id, account, token, catalog, model, version, pinned, flow, priority, phase, status, created_at, input, stream_key)
SELECT value ->> 0, value ->> 1, 'bench', 'bench', :model::text, :version::text, 0, value ->> 1, 0, 'queued', 'starting',
    :now::bigint, :input::text, value ->> 0
FROM json_array_elements(:rows::json);

-- name: seed_entries
INSERT INTO queue_entries (prediction, queue, flow, priority, rank)
SELECT value ->> 0, :queue::text, value ->> 1, 0, :now::bigint FROM json_array_elements(:rows::json);
