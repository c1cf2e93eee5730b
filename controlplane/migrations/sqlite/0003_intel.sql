-- Indicators that operators imported. The same value from two sources is two rows: each source has its own word.
CREATE TABLE indicators (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    source       TEXT    NOT NULL,
    value        TEXT    NOT NULL,
    kind         TEXT    NOT NULL CHECK (kind IN ('address', 'prefix', 'domain')),
    confidence   REAL    NOT NULL CHECK (confidence BETWEEN 0 AND 1),
    description  TEXT    NOT NULL,
    first_seen   INTEGER NOT NULL,
    last_seen    INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    UNIQUE (workspace_id, source, value)
);
CREATE INDEX indicators_strongest ON indicators (workspace_id, confidence DESC, id);
CREATE INDEX indicators_expiry ON indicators (expires_at);

-- Tokens that read the feeds and nothing else.
CREATE TABLE feed_tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    name         TEXT    NOT NULL,
    -- As in the table of the other tokens.
    lookup       BLOB    NOT NULL,
    hash         BLOB    NOT NULL UNIQUE,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER
);
CREATE INDEX feed_tokens_lookup ON feed_tokens (lookup);

-- Which Suricata rule is for which value: 9,000,000 and the id make its sid, which must not change between two feeds.
CREATE TABLE suricata_sids (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    value        TEXT    NOT NULL,
    -- When a feed last had it, to the day.
    used_at      INTEGER NOT NULL,
    UNIQUE (workspace_id, value)
);
CREATE INDEX suricata_sids_used ON suricata_sids (used_at);

CREATE TABLE maintenance_windows (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    -- None: the whole workspace.
    node_id      INTEGER REFERENCES nodes (id) ON DELETE CASCADE,
    name         TEXT    NOT NULL,
    schedule     TEXT    NOT NULL,
    enabled      INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
);
CREATE INDEX maintenance_windows_newest ON maintenance_windows (workspace_id, id DESC);
CREATE INDEX maintenance_windows_node ON maintenance_windows (node_id);
