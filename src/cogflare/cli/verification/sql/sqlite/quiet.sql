-- What the store holds when a run is over, and what has to be gone then.

-- name: all_predictions
SELECT p.id, a.username FROM predictions AS p JOIN accounts AS a ON a.id = p.account ORDER BY p.id;

-- name: all_attempts
SELECT prediction, attempt, holder, started_at, ended_at, outcome, slot_freed_at FROM attempts
ORDER BY prediction, attempt;

-- name: all_files
SELECT id, state FROM files WHERE purpose = 'output';

-- name: all_ends_told
SELECT prediction, id, state, tries FROM deliveries WHERE event = 'completed' ORDER BY id;

-- name: under_way
-- How much is not over yet: predictions that have not ended, attempts that are live or hold their slot, and messages
-- that have not arrived.
SELECT (SELECT count(*) FROM predictions WHERE phase <> 'ended')
    + (SELECT count(*) FROM attempts WHERE ended_at IS NULL OR slot_freed_at IS NULL)
    + (SELECT count(*) FROM deliveries WHERE state = 'pending');

-- name: left_entries
SELECT prediction, queue FROM queue_entries;

-- name: unsettled_flows
SELECT queue, flow, waiting FROM flows WHERE waiting <> 0;

-- name: count_tables
SELECT count(*) FROM sqlite_master;

-- name: drop_everything
-- A file is removed, not emptied.
SELECT 1;
