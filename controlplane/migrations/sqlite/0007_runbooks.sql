CREATE TABLE runbooks (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    name         TEXT    NOT NULL,
    description  TEXT    NOT NULL,
    conditions   TEXT    NOT NULL,
    steps        TEXT    NOT NULL,
    active       INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    UNIQUE (workspace_id, name)
);

-- Executions outlive their runbook, their incident and their node, so these are no references.
CREATE TABLE runbook_executions (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid         TEXT    NOT NULL UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    runbook_id   INTEGER NOT NULL,
    runbook_name TEXT    NOT NULL,
    started_by   TEXT    NOT NULL CHECK (started_by IN ('incident', 'manual')),
    test         INTEGER NOT NULL,
    incident_id  INTEGER,
    node         TEXT,
    -- The conditions when it was made: a made-up attack meets them.
    conditions   TEXT    NOT NULL,
    -- The steps when it was made, and what came of them.
    steps        TEXT    NOT NULL,
    status       TEXT    NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    error        TEXT    NOT NULL DEFAULT '',
    position     INTEGER NOT NULL DEFAULT 0,
    tries        INTEGER NOT NULL DEFAULT 0,
    next_at      INTEGER,
    -- The claim under which one process is at it, and when others may.
    claim        TEXT,
    leased_until INTEGER,
    created_at   INTEGER NOT NULL,
    started_at   INTEGER,
    ended_at     INTEGER
);
CREATE INDEX runbook_executions_newest ON runbook_executions (runbook_id, id DESC);
CREATE INDEX runbook_executions_incident ON runbook_executions (runbook_id, incident_id);
CREATE INDEX runbook_executions_due ON runbook_executions (next_at) WHERE status IN ('queued', 'running');
CREATE INDEX runbook_executions_ended ON runbook_executions (ended_at);
