-- Routes, providers, money.

-- `routed`: a provider may run it, as far as its route goes. `route` is the request's own wish (JSON). `hops` counts the
-- servers that it came through before this one.
ALTER TABLE predictions ADD COLUMN routed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE predictions ADD COLUMN route TEXT;
ALTER TABLE predictions ADD COLUMN hops BIGINT NOT NULL DEFAULT 0;

CREATE INDEX predictions_routed ON predictions (account, model, id) WHERE routed = 1 AND phase = 'queued';

-- What runs predictions elsewhere, with the key of the account (`sealed`; `hint`: its first characters). `settings` is a
-- JSON object. While it is paused nothing is sent there: until a time, or for as long as `paused_until` is far away.
CREATE TABLE providers (
    id TEXT COLLATE "C" PRIMARY KEY,
    account TEXT COLLATE "C" NOT NULL REFERENCES accounts (id),
    name TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('replicate', 'cogflare', 'runpod')),
    base_url TEXT NOT NULL,
    sealed TEXT NOT NULL,
    hint TEXT NOT NULL,
    settings TEXT NOT NULL,
    paused_until BIGINT,
    pause_reason TEXT,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX providers_by_name ON providers (account, name);

-- Where the predictions of an account may run, by model (owner/name; empty: all that have no route of their own).
-- `policy` is JSON; `routed` says whether it names a provider.
CREATE TABLE routes (
    account TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    policy TEXT NOT NULL,
    routed BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (account, model)
);

-- One attempt at a provider, from the moment before the first call until its cost is known. `epoch` is the attempt's
-- link_epoch: it grows when another node, or the next process, takes over. `decision` and `terms` are JSON; `remote_id`
-- is known from `submitted_at` on. Money is in millionths of a dollar: `reserved` at the start, `cost` at the end (null:
-- unknown). `is_refused`: the provider did not take it; `is_in_doubt`: it may have run without our hearing of it.
CREATE TABLE errands (
    prediction TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    account TEXT COLLATE "C" NOT NULL,
    token TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    provider TEXT COLLATE "C" NOT NULL,
    provider_name TEXT COLLATE "C" NOT NULL,
    node TEXT COLLATE "C" NOT NULL,
    epoch BIGINT NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('intent', 'submitted', 'over')),
    mark TEXT COLLATE "C" NOT NULL,
    terms TEXT NOT NULL,
    decision TEXT NOT NULL,
    remote_id TEXT COLLATE "C",
    is_refused BIGINT NOT NULL DEFAULT 0,
    is_in_doubt BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    submitted_at BIGINT,
    ended_at BIGINT,
    run_us BIGINT,
    reserved BIGINT NOT NULL,
    cost BIGINT,
    PRIMARY KEY (prediction, attempt)
);

CREATE INDEX errands_open ON errands (account, provider) WHERE state <> 'over';
CREATE INDEX errands_by_model ON errands (account, provider, model, created_at);
CREATE UNIQUE INDEX errands_by_mark ON errands (mark);

-- What an errand that is not over has reserved, and of which budget; its cost takes the place of `amount` in the end.
-- `is_rest`: it was all that was left, because nobody could tell what it costs.
CREATE TABLE errand_reservations (
    prediction TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    ref TEXT COLLATE "C" NOT NULL,
    since TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    is_rest BIGINT NOT NULL,
    PRIMARY KEY (prediction, attempt, scope, ref, since)
);

-- Nodes that drive errands: `beats` grows while they live.
CREATE TABLE nodes (
    node TEXT COLLATE "C" PRIMARY KEY,
    beats BIGINT NOT NULL
);

-- What may be spent: by an account, a token or a model (`ref`), a day or a month (UTC).
CREATE TABLE budgets (
    account TEXT COLLATE "C" NOT NULL,
    scope TEXT COLLATE "C" NOT NULL CHECK (scope IN ('account', 'token', 'model', 'provider')),
    ref TEXT COLLATE "C" NOT NULL,
    period TEXT COLLATE "C" NOT NULL CHECK (period IN ('day', 'month')),
    amount BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (account, scope, ref, period)
);

-- What is spent or reserved, even where no budget holds; `since` is the day (2026-01-31) or the month (2026-01).
CREATE TABLE spending (
    account TEXT COLLATE "C" NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    ref TEXT COLLATE "C" NOT NULL,
    since TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    PRIMARY KEY (account, scope, ref, since)
);

CREATE INDEX spending_by_age ON spending (since);

-- What errands have cost, by the day on which they began; it outlives them. Of the `runs`, `unknown` have no known cost,
-- and `in_doubt` may never have been.
CREATE TABLE costs (
    account TEXT COLLATE "C" NOT NULL,
    day TEXT COLLATE "C" NOT NULL,
    token TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    provider_name TEXT COLLATE "C" NOT NULL,
    runs BIGINT NOT NULL,
    unknown BIGINT NOT NULL,
    in_doubt BIGINT NOT NULL,
    run_us BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    PRIMARY KEY (account, day, token, model, provider_name)
);

CREATE INDEX costs_by_age ON costs (day);

-- What workers of one's own have run, by day.
CREATE TABLE usage (
    account TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    day TEXT COLLATE "C" NOT NULL,
    runs BIGINT NOT NULL,
    run_us BIGINT NOT NULL,
    PRIMARY KEY (account, day, model)
);

CREATE INDEX usage_by_age ON usage (day);

-- The last run times of a version on a kind of GPU: a JSON array of seconds, the newest last.
CREATE TABLE run_times (
    catalog TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    version TEXT COLLATE "C" NOT NULL,
    gpu TEXT COLLATE "C" NOT NULL,
    samples TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (catalog, model, version, gpu)
);

CREATE INDEX run_times_by_age ON run_times (changed_at);

-- When a worker began to set its model up; null once it has opened a link, or failed.
ALTER TABLE workers ADD COLUMN setup_since BIGINT;
