-- Times are microseconds since the Unix epoch, UTC. JSON is kept as text. Every table but the workspaces themselves
-- names the workspace that a row belongs to, directly or through its node or incident.

CREATE TABLE workspaces (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL UNIQUE,
    subscription TEXT    NOT NULL DEFAULT 'active' CHECK (subscription IN ('active', 'inactive')),
    detection    TEXT    NOT NULL DEFAULT '{}',
    created_at   INTEGER NOT NULL
);

CREATE TABLE tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    name         TEXT    NOT NULL,
    role         TEXT    NOT NULL CHECK (role IN ('owner', 'admin', 'analyst', 'readonly')),
    -- The first eight bytes of the hash find the row; the whole hash is compared outside the database.
    lookup       BLOB    NOT NULL,
    hash         BLOB    NOT NULL UNIQUE,
    rate_limit   INTEGER,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER
);
CREATE INDEX tokens_lookup ON tokens (lookup);

CREATE TABLE nodes (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id   INTEGER NOT NULL REFERENCES workspaces (id),
    uuid           TEXT    NOT NULL UNIQUE,
    name           TEXT    NOT NULL,
    ip             TEXT    NOT NULL,
    location       TEXT    NOT NULL,
    os             TEXT    NOT NULL,
    interface      TEXT    NOT NULL,
    key_hash       BLOB    NOT NULL,
    created_at     INTEGER NOT NULL,
    last_seen      INTEGER,
    -- Of the last heartbeat, for status and lists.
    ratio          REAL    NOT NULL DEFAULT 0,
    heartbeat      TEXT,
    config_version INTEGER NOT NULL DEFAULT 1,
    UNIQUE (workspace_id, name)
);

CREATE TABLE allowlist (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    prefix       TEXT    NOT NULL,
    label        TEXT    NOT NULL,
    node_id      INTEGER REFERENCES nodes (id) ON DELETE CASCADE,
    created_at   INTEGER NOT NULL
);
CREATE UNIQUE INDEX allowlist_once ON allowlist (workspace_id, prefix, coalesce(node_id, 0));
CREATE INDEX allowlist_node ON allowlist (node_id);

CREATE TABLE thresholds (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    target       TEXT    NOT NULL,
    label        TEXT    NOT NULL,
    thresholds   TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    UNIQUE (workspace_id, target)
);

CREATE TABLE rules (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id     INTEGER NOT NULL REFERENCES workspaces (id),
    name             TEXT    NOT NULL,
    trigger_json     TEXT    NOT NULL,
    action_json      TEXT    NOT NULL,
    scope_json       TEXT    NOT NULL,
    cooldown_minutes INTEGER NOT NULL,
    enabled          INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    UNIQUE (workspace_id, name)
);

CREATE TABLE incidents (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    uuid         TEXT    NOT NULL UNIQUE,
    node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    target       TEXT    NOT NULL,
    started_at   INTEGER NOT NULL,
    -- Status and severity that count, an operator's before the node's.
    status       TEXT    NOT NULL,
    severity     TEXT    NOT NULL,
    family       TEXT    NOT NULL,
    report       TEXT    NOT NULL,
    closed_at    INTEGER,
    false_positive INTEGER NOT NULL DEFAULT 0,
    severity_set TEXT,
    received_at  INTEGER NOT NULL,
    UNIQUE (node_id, started_at, target)
);
CREATE INDEX incidents_newest ON incidents (workspace_id, started_at DESC, id DESC);
CREATE INDEX incidents_status ON incidents (workspace_id, status);
CREATE INDEX incidents_node_status ON incidents (node_id, status);

CREATE TABLE incident_notes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    incident_id INTEGER NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    at          INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    text        TEXT    NOT NULL
);
CREATE INDEX incident_notes_incident ON incident_notes (incident_id);

CREATE TABLE executions (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    incident_id  INTEGER NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    node_uuid    TEXT    NOT NULL,
    uuid         TEXT    NOT NULL,
    rule_id      INTEGER NOT NULL,
    outcome      TEXT    NOT NULL,
    at           INTEGER NOT NULL,
    execution    TEXT    NOT NULL,
    UNIQUE (incident_id, uuid, outcome)
);
CREATE INDEX executions_rule ON executions (workspace_id, rule_id, at DESC);

CREATE TABLE commands (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    uuid         TEXT    NOT NULL UNIQUE,
    order_json   TEXT    NOT NULL,
    status       TEXT    NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'applied', 'failed', 'expired')),
    created_at   INTEGER NOT NULL,
    ended_at     INTEGER,
    error        TEXT    NOT NULL DEFAULT '',
    output       TEXT    NOT NULL DEFAULT ''
);
CREATE INDEX commands_pending ON commands (node_id, id) WHERE status = 'pending';

CREATE TABLE metrics (
    node_id     INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    at_secs     INTEGER NOT NULL,
    pps         INTEGER NOT NULL,
    bps         INTEGER NOT NULL,
    dropped_pps INTEGER NOT NULL,
    tcp_pps     INTEGER NOT NULL,
    udp_pps     INTEGER NOT NULL,
    icmp_pps    INTEGER NOT NULL,
    other_pps   INTEGER NOT NULL,
    PRIMARY KEY (node_id, at_secs)
) WITHOUT ROWID;

-- What is left of samples that are too old to be kept by the second.
CREATE TABLE metrics_minutes (
    node_id     INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    at_secs     INTEGER NOT NULL,
    samples     INTEGER NOT NULL,
    pps         INTEGER NOT NULL,
    bps         INTEGER NOT NULL,
    dropped_pps INTEGER NOT NULL,
    tcp_pps     INTEGER NOT NULL,
    udp_pps     INTEGER NOT NULL,
    icmp_pps    INTEGER NOT NULL,
    other_pps   INTEGER NOT NULL,
    peak_pps    INTEGER NOT NULL,
    peak_bps    INTEGER NOT NULL,
    PRIMARY KEY (node_id, at_secs)
) WITHOUT ROWID;

CREATE TABLE audit (
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    seq          INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    actor        TEXT    NOT NULL,
    action       TEXT    NOT NULL,
    object       TEXT    NOT NULL,
    result       TEXT    NOT NULL,
    detail       TEXT    NOT NULL,
    hash         BLOB    NOT NULL,
    PRIMARY KEY (workspace_id, seq)
) WITHOUT ROWID;
CREATE TRIGGER audit_is_not_edited BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;

-- Where each chain ends, so that a tail that was cut off shows.
CREATE TABLE audit_heads (
    workspace_id INTEGER PRIMARY KEY REFERENCES workspaces (id),
    seq          INTEGER NOT NULL,
    hash         BLOB    NOT NULL
);

CREATE TABLE idempotency (
    actor        TEXT    NOT NULL,
    key_hash     BLOB    NOT NULL,
    request_hash BLOB    NOT NULL,
    status       INTEGER NOT NULL,
    -- Sealed with a key that only the caller's credential gives: answers can hold secrets.
    answer       BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (actor, key_hash)
) WITHOUT ROWID;
CREATE INDEX idempotency_created ON idempotency (created_at);
