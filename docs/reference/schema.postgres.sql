-- The schema that the migrations make. Written by tests/store/test_migrations.py; do not edit.

CREATE FUNCTION public.flow_gains_entry() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1718382455);
    INSERT INTO flows (queue, flow, waiting, virtual_time)
    VALUES (new.queue, new.flow, 1, coalesce(
        (SELECT min(virtual_time) FROM flows WHERE queue = new.queue AND waiting > 0),
        (SELECT max(virtual_time) FROM flows WHERE queue = new.queue),
        0))
    ON CONFLICT (queue, flow) DO UPDATE SET
        waiting = flows.waiting + 1,
        virtual_time = CASE WHEN flows.waiting > 0 THEN flows.virtual_time
                            ELSE greatest(flows.virtual_time, excluded.virtual_time) END;
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.flow_loses_entry() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1718382455);
    UPDATE flows SET waiting = waiting - 1 WHERE queue = old.queue AND flow = old.flow;
    RETURN NULL;
END;
$$;

CREATE FUNCTION public.prediction_ended() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO deliveries (id, account, prediction, event, url, host, state, next_try_at, created_at)
    VALUES ('msg_' || new.id, new.account, new.id, 'completed', new.webhook, coalesce(new.webhook_host, 'unknown'), 'pending',
        new.completed_at, new.completed_at);
    RETURN NULL;
END;
$$;

CREATE TABLE public.accounts (
    id text NOT NULL COLLATE pg_catalog."C",
    username text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    created_at bigint NOT NULL,
    CONSTRAINT accounts_kind_check CHECK ((kind = ANY (ARRAY['user'::text, 'organization'::text, 'shared'::text])))
);

CREATE TABLE public.attempts (
    prediction text NOT NULL COLLATE pg_catalog."C",
    attempt bigint NOT NULL,
    claim text NOT NULL COLLATE pg_catalog."C",
    queue text NOT NULL COLLATE pg_catalog."C",
    flow text NOT NULL COLLATE pg_catalog."C",
    holder text NOT NULL COLLATE pg_catalog."C",
    link_epoch bigint NOT NULL,
    renewals bigint DEFAULT 0 NOT NULL,
    claimed_at bigint NOT NULL,
    started_at bigint,
    ended_at bigint,
    outcome text,
    reason text,
    slot_freed_at bigint,
    output_items bigint DEFAULT 0 NOT NULL,
    log_bytes bigint DEFAULT 0 NOT NULL,
    remote_id text,
    cost double precision,
    CONSTRAINT attempts_outcome_check CHECK ((outcome = ANY (ARRAY['succeeded'::text, 'failed'::text, 'canceled'::text, 'lost'::text])))
);

CREATE TABLE public.budgets (
    account text NOT NULL COLLATE pg_catalog."C",
    scope text NOT NULL COLLATE pg_catalog."C",
    ref text NOT NULL COLLATE pg_catalog."C",
    period text NOT NULL COLLATE pg_catalog."C",
    amount bigint NOT NULL,
    changed_at bigint NOT NULL,
    CONSTRAINT budgets_period_check CHECK ((period = ANY (ARRAY['day'::text, 'month'::text]))),
    CONSTRAINT budgets_scope_check CHECK ((scope = ANY (ARRAY['account'::text, 'token'::text, 'model'::text, 'provider'::text])))
);

CREATE TABLE public.chunks (
    prediction text NOT NULL COLLATE pg_catalog."C",
    attempt bigint NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    data text NOT NULL,
    CONSTRAINT chunks_kind_check CHECK ((kind = ANY (ARRAY['output'::text, 'log'::text, 'result'::text])))
);

CREATE TABLE public.costs (
    account text NOT NULL COLLATE pg_catalog."C",
    day text NOT NULL COLLATE pg_catalog."C",
    token text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    provider_name text NOT NULL COLLATE pg_catalog."C",
    runs bigint NOT NULL,
    unknown bigint NOT NULL,
    in_doubt bigint NOT NULL,
    run_us bigint NOT NULL,
    cost bigint NOT NULL
);

CREATE TABLE public.deliveries (
    id text NOT NULL COLLATE pg_catalog."C",
    account text NOT NULL COLLATE pg_catalog."C",
    prediction text NOT NULL COLLATE pg_catalog."C",
    event text NOT NULL COLLATE pg_catalog."C",
    url text NOT NULL,
    host text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    tries bigint DEFAULT 0 NOT NULL,
    next_try_at bigint,
    give_up_at bigint,
    created_at bigint NOT NULL,
    ended_at bigint,
    items bigint,
    log_bytes bigint,
    CONSTRAINT deliveries_event_check CHECK ((event = ANY (ARRAY['created'::text, 'start'::text, 'output'::text, 'logs'::text, 'completed'::text]))),
    CONSTRAINT deliveries_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text])))
);

CREATE TABLE public.delivery_tries (
    delivery text NOT NULL COLLATE pg_catalog."C",
    try bigint NOT NULL,
    at bigint NOT NULL,
    duration_us bigint NOT NULL,
    status bigint,
    error text,
    answer text
);

CREATE TABLE public.errand_reservations (
    prediction text NOT NULL COLLATE pg_catalog."C",
    attempt bigint NOT NULL,
    scope text NOT NULL COLLATE pg_catalog."C",
    ref text NOT NULL COLLATE pg_catalog."C",
    since text NOT NULL COLLATE pg_catalog."C",
    amount bigint NOT NULL,
    is_rest bigint NOT NULL
);

CREATE TABLE public.errands (
    prediction text NOT NULL COLLATE pg_catalog."C",
    attempt bigint NOT NULL,
    account text NOT NULL COLLATE pg_catalog."C",
    token text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    provider text NOT NULL COLLATE pg_catalog."C",
    provider_name text NOT NULL COLLATE pg_catalog."C",
    node text NOT NULL COLLATE pg_catalog."C",
    epoch bigint NOT NULL,
    state text NOT NULL COLLATE pg_catalog."C",
    mark text NOT NULL COLLATE pg_catalog."C",
    terms text NOT NULL,
    decision text NOT NULL,
    remote_id text COLLATE pg_catalog."C",
    is_refused bigint DEFAULT 0 NOT NULL,
    is_in_doubt bigint DEFAULT 0 NOT NULL,
    created_at bigint NOT NULL,
    submitted_at bigint,
    ended_at bigint,
    run_us bigint,
    reserved bigint NOT NULL,
    cost bigint,
    CONSTRAINT errands_state_check CHECK ((state = ANY (ARRAY['intent'::text, 'submitted'::text, 'over'::text])))
);

CREATE TABLE public.file_uses (
    file text NOT NULL COLLATE pg_catalog."C",
    prediction text NOT NULL COLLATE pg_catalog."C"
);

CREATE TABLE public.files (
    id text NOT NULL COLLATE pg_catalog."C",
    account text NOT NULL COLLATE pg_catalog."C",
    purpose text NOT NULL COLLATE pg_catalog."C",
    prediction text COLLATE pg_catalog."C",
    attempt bigint,
    name text NOT NULL COLLATE pg_catalog."C",
    content_type text NOT NULL,
    size bigint,
    sha256 text,
    md5 text,
    metadata text,
    state text NOT NULL COLLATE pg_catalog."C",
    created_at bigint NOT NULL,
    expires_at bigint,
    CONSTRAINT files_purpose_check CHECK ((purpose = ANY (ARRAY['output'::text, 'input'::text]))),
    CONSTRAINT files_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'bound'::text, 'expired'::text])))
);

CREATE TABLE public.flows (
    queue text NOT NULL COLLATE pg_catalog."C",
    flow text NOT NULL COLLATE pg_catalog."C",
    waiting bigint NOT NULL,
    virtual_time bigint NOT NULL
);

CREATE TABLE public.idempotency (
    account text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    fingerprint text NOT NULL COLLATE pg_catalog."C",
    prediction text NOT NULL COLLATE pg_catalog."C",
    attached bigint DEFAULT 0 NOT NULL,
    created_at bigint NOT NULL,
    CONSTRAINT idempotency_kind_check CHECK ((kind = ANY (ARRAY['key'::text, 'retry'::text])))
);

CREATE TABLE public.inputs (
    prediction text NOT NULL COLLATE pg_catalog."C",
    part bigint NOT NULL,
    data text NOT NULL
);

CREATE TABLE public.models (
    account text NOT NULL COLLATE pg_catalog."C",
    owner text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    description text,
    latest_version text COLLATE pg_catalog."C",
    rerun bigint DEFAULT 0 NOT NULL,
    run_count bigint DEFAULT 0 NOT NULL,
    created_at bigint NOT NULL,
    run_limit_s double precision,
    start_limit_s double precision,
    max_queued bigint,
    requirements text
);

CREATE TABLE public.nodes (
    node text NOT NULL COLLATE pg_catalog."C",
    beats bigint NOT NULL
);

CREATE TABLE public.predictions (
    id text NOT NULL COLLATE pg_catalog."C",
    account text NOT NULL COLLATE pg_catalog."C",
    token text NOT NULL COLLATE pg_catalog."C",
    catalog text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    version text NOT NULL COLLATE pg_catalog."C",
    pinned bigint NOT NULL,
    flow text NOT NULL COLLATE pg_catalog."C",
    priority bigint NOT NULL,
    phase text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    attempt bigint DEFAULT 0 NOT NULL,
    strikes bigint DEFAULT 0 NOT NULL,
    created_at bigint NOT NULL,
    started_at bigint,
    completed_at bigint,
    deadline bigint,
    input text,
    output text,
    output_items bigint,
    output_bytes bigint,
    logs text,
    log_bytes bigint DEFAULT 0 NOT NULL,
    error text,
    metrics text,
    webhook text,
    webhook_events text,
    stream_key text NOT NULL,
    data_removed bigint DEFAULT 0 NOT NULL,
    client_id text COLLATE pg_catalog."C",
    run_limit_s double precision,
    start_by bigint,
    struck_out bigint DEFAULT 0 NOT NULL,
    requeued_as text COLLATE pg_catalog."C",
    webhook_host text,
    webhook_origin text,
    routed bigint DEFAULT 0 NOT NULL,
    route text,
    hops bigint DEFAULT 0 NOT NULL,
    dialect text,
    CONSTRAINT predictions_phase_check CHECK ((phase = ANY (ARRAY['queued'::text, 'parked'::text, 'assigned'::text, 'running'::text, 'ended'::text])))
);

CREATE TABLE public.providers (
    id text NOT NULL COLLATE pg_catalog."C",
    account text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    base_url text NOT NULL,
    sealed text NOT NULL,
    hint text NOT NULL,
    settings text NOT NULL,
    paused_until bigint,
    pause_reason text,
    created_at bigint NOT NULL,
    changed_at bigint NOT NULL,
    CONSTRAINT providers_kind_check CHECK ((kind = ANY (ARRAY['replicate'::text, 'cogflare'::text, 'runpod'::text])))
);

CREATE TABLE public.queue_entries (
    prediction text NOT NULL COLLATE pg_catalog."C",
    queue text NOT NULL COLLATE pg_catalog."C",
    flow text NOT NULL COLLATE pg_catalog."C",
    priority bigint NOT NULL,
    rank bigint NOT NULL,
    not_before bigint,
    avoid_worker text COLLATE pg_catalog."C",
    avoid_until bigint
);

CREATE TABLE public.routes (
    account text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    policy text NOT NULL,
    routed bigint NOT NULL,
    changed_at bigint NOT NULL
);

CREATE TABLE public.run_times (
    catalog text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    version text NOT NULL COLLATE pg_catalog."C",
    gpu text NOT NULL COLLATE pg_catalog."C",
    samples text NOT NULL,
    changed_at bigint NOT NULL
);

CREATE TABLE public.schema_version (
    version bigint NOT NULL
);

CREATE TABLE public.secrets (
    account text NOT NULL COLLATE pg_catalog."C",
    purpose text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    sealed text NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    CONSTRAINT secrets_purpose_check CHECK ((purpose = ANY (ARRAY['webhooks'::text, 'files'::text])))
);

CREATE TABLE public.spending (
    account text NOT NULL COLLATE pg_catalog."C",
    scope text NOT NULL COLLATE pg_catalog."C",
    ref text NOT NULL COLLATE pg_catalog."C",
    since text NOT NULL COLLATE pg_catalog."C",
    amount bigint NOT NULL
);

CREATE TABLE public.tokens (
    id text NOT NULL COLLATE pg_catalog."C",
    account text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    hash text NOT NULL COLLATE pg_catalog."C",
    hint text NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    revoked_at bigint,
    models text,
    max_connections bigint,
    CONSTRAINT tokens_kind_check CHECK ((kind = ANY (ARRAY['admin'::text, 'api'::text, 'worker'::text])))
);

CREATE TABLE public.usage (
    account text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    day text NOT NULL COLLATE pg_catalog."C",
    runs bigint NOT NULL,
    run_us bigint NOT NULL
);

CREATE TABLE public.vault (
    id bigint NOT NULL,
    fingerprint text NOT NULL,
    CONSTRAINT vault_id_check CHECK ((id = 1))
);

CREATE TABLE public.versions (
    account text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    owner text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    cog_version text NOT NULL,
    schema text,
    output_kind text NOT NULL,
    created_at bigint NOT NULL,
    CONSTRAINT versions_output_kind_check CHECK ((output_kind = ANY (ARRAY['single'::text, 'iterator'::text, 'text'::text])))
);

CREATE TABLE public.workers (
    id text NOT NULL COLLATE pg_catalog."C",
    account text NOT NULL COLLATE pg_catalog."C",
    token text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    instance text NOT NULL,
    node text NOT NULL,
    link_epoch bigint NOT NULL,
    state text NOT NULL COLLATE pg_catalog."C",
    offers text NOT NULL,
    agent text NOT NULL,
    connected_at bigint NOT NULL,
    changed_at bigint NOT NULL,
    losses bigint DEFAULT 0 NOT NULL,
    quarantines bigint DEFAULT 0 NOT NULL,
    quarantine text,
    quarantined_at bigint,
    lost_at bigint,
    setup_since bigint,
    machine text DEFAULT '{}'::text NOT NULL,
    unmet text DEFAULT '[]'::text NOT NULL,
    CONSTRAINT workers_state_check CHECK ((state = ANY (ARRAY['online'::text, 'away'::text, 'offline'::text])))
);

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_username_key UNIQUE (username);

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (prediction, attempt);

ALTER TABLE ONLY public.budgets
    ADD CONSTRAINT budgets_pkey PRIMARY KEY (account, scope, ref, period);

ALTER TABLE ONLY public.chunks
    ADD CONSTRAINT chunks_pkey PRIMARY KEY (prediction, attempt, kind, "position");

ALTER TABLE ONLY public.costs
    ADD CONSTRAINT costs_pkey PRIMARY KEY (account, day, token, model, provider_name);

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.delivery_tries
    ADD CONSTRAINT delivery_tries_pkey PRIMARY KEY (delivery, try);

ALTER TABLE ONLY public.errand_reservations
    ADD CONSTRAINT errand_reservations_pkey PRIMARY KEY (prediction, attempt, scope, ref, since);

ALTER TABLE ONLY public.errands
    ADD CONSTRAINT errands_pkey PRIMARY KEY (prediction, attempt);

ALTER TABLE ONLY public.file_uses
    ADD CONSTRAINT file_uses_pkey PRIMARY KEY (file, prediction);

ALTER TABLE ONLY public.files
    ADD CONSTRAINT files_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.flows
    ADD CONSTRAINT flows_pkey PRIMARY KEY (queue, flow);

ALTER TABLE ONLY public.idempotency
    ADD CONSTRAINT idempotency_pkey PRIMARY KEY (account, kind, key);

ALTER TABLE ONLY public.inputs
    ADD CONSTRAINT inputs_pkey PRIMARY KEY (prediction, part);

ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (account, owner, name);

ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (node);

ALTER TABLE ONLY public.predictions
    ADD CONSTRAINT predictions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.providers
    ADD CONSTRAINT providers_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.queue_entries
    ADD CONSTRAINT queue_entries_pkey PRIMARY KEY (prediction, queue);

ALTER TABLE ONLY public.routes
    ADD CONSTRAINT routes_pkey PRIMARY KEY (account, model);

ALTER TABLE ONLY public.run_times
    ADD CONSTRAINT run_times_pkey PRIMARY KEY (catalog, model, version, gpu);

ALTER TABLE ONLY public.schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (account, purpose, id);

ALTER TABLE ONLY public.spending
    ADD CONSTRAINT spending_pkey PRIMARY KEY (account, scope, ref, since);

ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT tokens_hash_key UNIQUE (hash);

ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT tokens_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.usage
    ADD CONSTRAINT usage_pkey PRIMARY KEY (account, day, model);

ALTER TABLE ONLY public.vault
    ADD CONSTRAINT vault_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.versions
    ADD CONSTRAINT versions_pkey PRIMARY KEY (account, id, owner, name);

ALTER TABLE ONLY public.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (id);

CREATE INDEX attempts_open ON public.attempts USING btree (holder, claim) WHERE ((ended_at IS NULL) OR (slot_freed_at IS NULL));

CREATE INDEX costs_by_age ON public.costs USING btree (day);

CREATE INDEX deliveries_by_account ON public.deliveries USING btree (account, id);

CREATE INDEX deliveries_by_prediction ON public.deliveries USING btree (prediction);

CREATE INDEX deliveries_due ON public.deliveries USING btree (host, next_try_at) WHERE (state = 'pending'::text);

CREATE INDEX deliveries_ended ON public.deliveries USING btree (ended_at) WHERE (state <> 'pending'::text);

CREATE INDEX deliveries_undelivered ON public.deliveries USING btree (account, id) WHERE (state <> 'delivered'::text);

CREATE UNIQUE INDEX errands_by_mark ON public.errands USING btree (mark);

CREATE INDEX errands_by_model ON public.errands USING btree (account, provider, model, created_at);

CREATE INDEX errands_open ON public.errands USING btree (account, provider) WHERE (state <> 'over'::text);

CREATE INDEX file_uses_by_prediction ON public.file_uses USING btree (prediction);

CREATE INDEX files_by_account ON public.files USING btree (account, id) WHERE ((purpose = 'input'::text) AND (prediction IS NULL));

CREATE INDEX files_by_attempt ON public.files USING btree (prediction, attempt) WHERE (prediction IS NOT NULL);

CREATE INDEX files_expired ON public.files USING btree (id) WHERE (state = 'expired'::text);

CREATE INDEX files_expiring ON public.files USING btree (expires_at) WHERE ((expires_at IS NOT NULL) AND (state <> 'expired'::text));

CREATE INDEX files_pending ON public.files USING btree (created_at) WHERE (state = 'pending'::text);

CREATE INDEX flows_by_flow ON public.flows USING btree (flow) WHERE (waiting > 0);

CREATE INDEX flows_by_time ON public.flows USING btree (queue, virtual_time);

CREATE INDEX flows_waiting ON public.flows USING btree (queue, virtual_time) WHERE (waiting > 0);

CREATE INDEX idempotency_by_age ON public.idempotency USING btree (kind, created_at);

CREATE INDEX idempotency_by_fingerprint ON public.idempotency USING btree (account, fingerprint, key, attached, created_at) WHERE (kind = 'retry'::text);

CREATE INDEX models_with_requirements ON public.models USING btree (account, owner, name) WHERE (requirements IS NOT NULL);

CREATE INDEX predictions_by_account ON public.predictions USING btree (account, id);

CREATE UNIQUE INDEX predictions_by_client_id ON public.predictions USING btree (account, client_id) WHERE (client_id IS NOT NULL);

CREATE INDEX predictions_by_deadline ON public.predictions USING btree (deadline) WHERE ((deadline IS NOT NULL) AND (phase <> 'ended'::text));

CREATE INDEX predictions_by_model ON public.predictions USING btree (account, model, id);

CREATE INDEX predictions_by_start ON public.predictions USING btree (start_by) WHERE ((start_by IS NOT NULL) AND (started_at IS NULL) AND (phase <> 'ended'::text));

CREATE INDEX predictions_by_status ON public.predictions USING btree (account, status, id);

CREATE INDEX predictions_routed ON public.predictions USING btree (account, model, id) WHERE ((routed = 1) AND (phase = 'queued'::text));

CREATE INDEX predictions_struck_out ON public.predictions USING btree (account, id) WHERE (struck_out = 1);

CREATE INDEX predictions_with_data ON public.predictions USING btree (completed_at) WHERE ((phase = 'ended'::text) AND (data_removed < 2));

CREATE UNIQUE INDEX providers_by_name ON public.providers USING btree (account, name);

CREATE INDEX queue_entries_parked ON public.queue_entries USING btree (not_before) WHERE (not_before IS NOT NULL);

CREATE INDEX queue_entries_ready ON public.queue_entries USING btree (queue, flow, priority, rank, prediction) WHERE (not_before IS NULL);

CREATE INDEX run_times_by_age ON public.run_times USING btree (changed_at);

CREATE INDEX spending_by_age ON public.spending USING btree (since);

CREATE INDEX tokens_by_account ON public.tokens USING btree (account, id);

CREATE INDEX usage_by_age ON public.usage USING btree (day);

CREATE INDEX versions_by_model ON public.versions USING btree (account, owner, name, created_at);

CREATE INDEX workers_by_account ON public.workers USING btree (account, id);

CREATE INDEX workers_by_token ON public.workers USING btree (token) WHERE (state = 'online'::text);

CREATE INDEX workers_quarantined ON public.workers USING btree (id) WHERE (quarantine IS NOT NULL);

CREATE TRIGGER predictions_ended AFTER UPDATE OF phase ON public.predictions FOR EACH ROW WHEN (((new.phase = 'ended'::text) AND (old.phase <> 'ended'::text) AND (new.webhook IS NOT NULL))) EXECUTE FUNCTION public.prediction_ended();

CREATE TRIGGER queue_entries_added AFTER INSERT ON public.queue_entries FOR EACH ROW WHEN ((new.not_before IS NULL)) EXECUTE FUNCTION public.flow_gains_entry();

CREATE TRIGGER queue_entries_held AFTER UPDATE OF not_before ON public.queue_entries FOR EACH ROW WHEN (((old.not_before IS NULL) AND (new.not_before IS NOT NULL))) EXECUTE FUNCTION public.flow_loses_entry();

CREATE TRIGGER queue_entries_released AFTER UPDATE OF not_before ON public.queue_entries FOR EACH ROW WHEN (((old.not_before IS NOT NULL) AND (new.not_before IS NULL))) EXECUTE FUNCTION public.flow_gains_entry();

CREATE TRIGGER queue_entries_removed AFTER DELETE ON public.queue_entries FOR EACH ROW WHEN ((old.not_before IS NULL)) EXECUTE FUNCTION public.flow_loses_entry();

ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_account_fkey FOREIGN KEY (account) REFERENCES public.accounts(id);

ALTER TABLE ONLY public.providers
    ADD CONSTRAINT providers_account_fkey FOREIGN KEY (account) REFERENCES public.accounts(id);

ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT tokens_account_fkey FOREIGN KEY (account) REFERENCES public.accounts(id);

ALTER TABLE ONLY public.versions
    ADD CONSTRAINT versions_account_owner_name_fkey FOREIGN KEY (account, owner, name) REFERENCES public.models(account, owner, name);

ALTER TABLE ONLY public.workers
    ADD CONSTRAINT workers_account_fkey FOREIGN KEY (account) REFERENCES public.accounts(id);
