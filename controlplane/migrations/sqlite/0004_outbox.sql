-- Where messages go: notification channels and integrations.
CREATE TABLE destinations (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    duty         TEXT    NOT NULL CHECK (duty IN ('channel', 'integration')),
    kind         TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    enabled      INTEGER NOT NULL,
    min_severity TEXT    NOT NULL,
    settings     TEXT    NOT NULL,
    -- Names of the secrets that are set; the values are in `sealed`, which only the key outside of the database opens.
    secret_names TEXT    NOT NULL,
    sealed       BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    -- Failures in a row, and until when nothing is sent: because of them, or because the destination asked for it.
    failures     INTEGER NOT NULL DEFAULT 0,
    open_until   INTEGER,
    paused_until INTEGER,
    delivered_at INTEGER,
    failed_at    INTEGER,
    last_error   TEXT    NOT NULL DEFAULT '',
    -- The worker that sends now. Its claim ends by itself, should it die.
    lease        TEXT,
    lease_until  INTEGER,
    claimed_at   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (workspace_id, duty, name)
);

-- One message to one destination, from the commit of what it tells until it is delivered or given up, and after that
-- as history.
CREATE TABLE deliveries (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid           TEXT    NOT NULL UNIQUE,
    workspace_id   INTEGER NOT NULL REFERENCES workspaces (id),
    destination_id INTEGER NOT NULL REFERENCES destinations (id) ON DELETE CASCADE,
    -- Messages outlive their incident, so this is no reference.
    incident_id    INTEGER,
    event          TEXT    NOT NULL,
    body           TEXT    NOT NULL,
    status         TEXT    NOT NULL CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts       INTEGER NOT NULL,
    next_at        INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    attempted_at   INTEGER,
    ended_at       INTEGER,
    http_status    INTEGER,
    latency_ms     INTEGER,
    error          TEXT    NOT NULL DEFAULT '',
    answer         TEXT    NOT NULL DEFAULT ''
);
CREATE INDEX deliveries_newest ON deliveries (destination_id, id DESC);
CREATE INDEX deliveries_incident ON deliveries (destination_id, incident_id);
CREATE INDEX deliveries_pending ON deliveries (destination_id, incident_id, id) WHERE status = 'pending';
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE status = 'pending';
CREATE INDEX deliveries_ended ON deliveries (ended_at);
