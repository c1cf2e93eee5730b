-- How mitigation rules reach a speaker, a cloud or an appliance.
CREATE TABLE adapters (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    kind         TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    endpoint     TEXT    NOT NULL,
    -- Sealed with the server's key: it is needed in clear to sign.
    auth_token   BLOB,
    config       TEXT    NOT NULL,
    capabilities TEXT    NOT NULL,
    -- Set when it is to go as soon as its rules are withdrawn.
    deleting_at  INTEGER,
    checked_at   INTEGER,
    check_error  TEXT    NOT NULL DEFAULT '',
    latency_ms   INTEGER,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    UNIQUE (workspace_id, name)
);

-- What should be announced, and how far that is. Rules outlive their adapter.
CREATE TABLE mitigation_rules (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    uuid         TEXT    NOT NULL UNIQUE,
    target       TEXT    NOT NULL,
    intent       TEXT    NOT NULL,
    adapter_id   INTEGER NOT NULL,
    adapter_name TEXT    NOT NULL,
    ttl_secs     INTEGER NOT NULL,
    reason       TEXT    NOT NULL,
    status       TEXT    NOT NULL CHECK (status IN ('pending', 'active', 'withdrawing', 'withdrawn', 'expired', 'failed')),
    -- What a withdrawal ends as.
    ending       TEXT,
    since        INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    next_at      INTEGER NOT NULL,
    last_error   TEXT    NOT NULL DEFAULT '',
    -- The claim under which one process is trying, and when others may.
    claim        TEXT,
    leased_until INTEGER,
    created_at   INTEGER NOT NULL,
    announced_at INTEGER,
    expires_at   INTEGER,
    ended_at     INTEGER
);
CREATE UNIQUE INDEX mitigation_rules_live ON mitigation_rules (workspace_id, target, intent)
    WHERE status IN ('pending', 'active', 'withdrawing');
CREATE INDEX mitigation_rules_newest ON mitigation_rules (workspace_id, id DESC);
CREATE INDEX mitigation_rules_due ON mitigation_rules (next_at) WHERE status IN ('pending', 'withdrawing');
CREATE INDEX mitigation_rules_adapter ON mitigation_rules (adapter_id) WHERE status IN ('pending', 'active', 'withdrawing');

CREATE TABLE escalation_policies (
    workspace_id INTEGER PRIMARY KEY REFERENCES workspaces (id),
    policy       TEXT    NOT NULL,
    updated_at   INTEGER NOT NULL
);

CREATE TABLE scrubbing (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    name         TEXT    NOT NULL,
    provider     TEXT    NOT NULL,
    -- Sealed with the server's key.
    credentials  BLOB,
    prefixes     TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    UNIQUE (workspace_id, name)
);
