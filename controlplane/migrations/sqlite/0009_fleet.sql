-- What nodes say every few seconds lies apart from what they are, so that neither waits for the other nor is written
-- again with it.
CREATE TABLE node_states (
    node_id   INTEGER PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    last_seen INTEGER NOT NULL,
    -- Of the last heartbeat, for status and lists.
    ratio     REAL    NOT NULL,
    heartbeat TEXT    NOT NULL
);
INSERT INTO node_states (node_id, last_seen, ratio, heartbeat)
SELECT id, last_seen, ratio, heartbeat FROM nodes WHERE last_seen IS NOT NULL AND heartbeat IS NOT NULL;
ALTER TABLE nodes DROP COLUMN last_seen;
ALTER TABLE nodes DROP COLUMN ratio;
ALTER TABLE nodes DROP COLUMN heartbeat;

-- A node's configuration has the version of its workspace and its own, added: a change for all nodes is one row.
ALTER TABLE workspaces ADD COLUMN config_version INTEGER NOT NULL DEFAULT 0;

-- What several processes count together. Rows of windows that have ended mean nothing.
CREATE TABLE rate_windows (
    bucket  TEXT    PRIMARY KEY,
    ends_at INTEGER NOT NULL,
    used    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX rate_windows_ends ON rate_windows (ends_at);
