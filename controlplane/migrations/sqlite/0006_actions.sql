-- What an integration proposes about an incident, until somebody decides on it.
CREATE TABLE staged_rules (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id   INTEGER NOT NULL REFERENCES workspaces (id),
    destination_id INTEGER NOT NULL REFERENCES destinations (id) ON DELETE CASCADE,
    incident_id    INTEGER NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    action         TEXT    NOT NULL,
    status         TEXT    NOT NULL CHECK (status IN ('pending', 'approved', 'rejected', 'expired')),
    -- Whether what is done is undone when the incident ends, or only after `ttl_secs`.
    undo_at_resolve INTEGER NOT NULL,
    ttl_secs       INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    expires_at     INTEGER NOT NULL,
    decided_at     INTEGER,
    decided_by     TEXT    NOT NULL DEFAULT '',
    reason         TEXT    NOT NULL DEFAULT '',
    -- The node's order, whose end says what became of the rule.
    command        TEXT
);
CREATE INDEX staged_rules_newest ON staged_rules (workspace_id, id DESC);
CREATE INDEX staged_rules_incident ON staged_rules (incident_id, destination_id);
CREATE INDEX staged_rules_due ON staged_rules (expires_at) WHERE status = 'pending';
CREATE INDEX staged_rules_destination ON staged_rules (destination_id);

-- A profile's rules on one node: tried, and confirmed in time or rolled back.
CREATE TABLE profile_applications (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    uuid         TEXT    NOT NULL UNIQUE,
    profile      TEXT    NOT NULL,
    suite        TEXT    NOT NULL,
    custom       TEXT    NOT NULL,
    decision     TEXT    NOT NULL CHECK (decision IN ('none', 'confirmed', 'rolled_back')),
    confirm_secs INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    decided_at   INTEGER,
    -- The orders to apply, and to confirm or to roll back; their ends say what became of them.
    command      TEXT    NOT NULL,
    last_command TEXT
);
CREATE INDEX profile_applications_newest ON profile_applications (workspace_id, id DESC);
CREATE INDEX profile_applications_node ON profile_applications (node_id);
