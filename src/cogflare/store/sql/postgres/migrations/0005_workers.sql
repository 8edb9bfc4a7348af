-- Inventory and requirements, limits of worker tokens, predictions in the dialect of 2022.

-- What the worker's machine has (JSON, as its hello says it), and for each of its offers what the model requires and
-- the machine has not (a JSON array of texts, empty where it may run).
ALTER TABLE workers ADD COLUMN machine TEXT NOT NULL DEFAULT '{}';
ALTER TABLE workers ADD COLUMN unmet TEXT NOT NULL DEFAULT '[]';

-- What a model requires of the workers that run it (JSON); null: nothing.
ALTER TABLE models ADD COLUMN requirements TEXT;

CREATE INDEX models_with_requirements ON models (account, owner, name) WHERE requirements IS NOT NULL;

-- What workers with this token may offer (a JSON array of owner/name; null: anything), and how many may be connected.
ALTER TABLE tokens ADD COLUMN models TEXT;
ALTER TABLE tokens ADD COLUMN max_connections BIGINT;

CREATE INDEX workers_by_token ON workers (token) WHERE state = 'online';

-- How the client that made it speaks: null is Replicate's way, '2022' that of the first Cogflare.
ALTER TABLE predictions ADD COLUMN dialect TEXT;

-- Messages tell of a creation too, to webhooks of that dialect.
ALTER TABLE deliveries DROP CONSTRAINT deliveries_event_check;
ALTER TABLE deliveries ADD CONSTRAINT deliveries_event_check
    CHECK (event IN ('created', 'start', 'output', 'logs', 'completed'));
