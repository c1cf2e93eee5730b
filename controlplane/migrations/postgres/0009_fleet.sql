-- What nodes say every few seconds lies apart from what they are, so that neither waits for the other nor is written
-- again with it.
CREATE TABLE node_states (
    node_id   BIGINT PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    last_seen BIGINT NOT NULL,
    -- Of the last heartbeat, for status and lists.
    ratio     DOUBLE PRECISION NOT NULL,
    heartbeat TEXT    NOT NULL
) WITH (fillfactor = 50);
INSERT INTO node_states (node_id, last_seen, ratio, heartbeat)
SELECT id, last_seen, ratio, heartbeat FROM nodes WHERE last_seen IS NOT NULL AND heartbeat IS NOT NULL;
ALTER TABLE nodes DROP COLUMN last_seen;
ALTER TABLE nodes DROP COLUMN ratio;
ALTER TABLE nodes DROP COLUMN heartbeat;

-- A node's configuration has the version of its workspace and its own, added: a change for all nodes is one row.
ALTER TABLE workspaces ADD COLUMN config_version BIGINT NOT NULL DEFAULT 0;

-- What several processes count together. Rows of windows that have ended mean nothing, and none outlive a crash.
CREATE UNLOGGED TABLE rate_windows (
    bucket  TEXT   PRIMARY KEY,
    ends_at BIGINT NOT NULL,
    used    BIGINT NOT NULL
) WITH (fillfactor = 50);
