-- Captures that nodes uploaded. The bytes lie in files named by their hash; rows with the same hash share one.
CREATE TABLE pcaps (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    incident_id  INTEGER NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    -- The node's word for the upload, by which a repeated chunk finds what became of it.
    upload       TEXT    NOT NULL,
    part         INTEGER NOT NULL,
    packets      INTEGER,
    format       TEXT    NOT NULL CHECK (format IN ('pcap', 'pcapng')),
    bytes        INTEGER NOT NULL,
    sha256       BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    UNIQUE (incident_id, sha256),
    UNIQUE (node_id, upload)
);
CREATE INDEX pcaps_newest ON pcaps (workspace_id, id DESC);
CREATE INDEX pcaps_node ON pcaps (node_id, created_at);
CREATE INDEX pcaps_hash ON pcaps (sha256);

-- Uploads under way. Which chunks are there is told by their files, in a folder named by `key`.
CREATE TABLE pcap_uploads (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    key          TEXT    NOT NULL UNIQUE,
    node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    incident_id  INTEGER NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    upload       TEXT    NOT NULL,
    chunks       INTEGER NOT NULL,
    touched_at   INTEGER NOT NULL,
    UNIQUE (node_id, upload)
);
CREATE INDEX pcap_uploads_incident ON pcap_uploads (incident_id);
