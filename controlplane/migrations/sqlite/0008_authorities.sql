-- The built-in certificate authority: its roots, and the certificates that nodes got of them.
CREATE TABLE authorities (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    name         TEXT    NOT NULL,
    -- next: trusted, does not sign yet; active: signs; old: trusted, signs no more; retired: not trusted.
    state        TEXT    NOT NULL CHECK (state IN ('next', 'active', 'old', 'retired')),
    certificate  BLOB    NOT NULL,
    fingerprint  BLOB    NOT NULL UNIQUE,
    -- Sealed with the key that is not in the database.
    sealed_key   BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    not_after    INTEGER NOT NULL,
    changed_at   INTEGER NOT NULL
);
-- One root of each of these states at a time.
CREATE UNIQUE INDEX authorities_next ON authorities (workspace_id) WHERE state = 'next';
CREATE UNIQUE INDEX authorities_active ON authorities (workspace_id) WHERE state = 'active';

CREATE TABLE certificates (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id),
    authority_id INTEGER NOT NULL REFERENCES authorities (id),
    node_id      INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    serial       TEXT    NOT NULL,
    fingerprint  BLOB    NOT NULL UNIQUE,
    not_before   INTEGER NOT NULL,
    not_after    INTEGER NOT NULL,
    issued_at    INTEGER NOT NULL,
    revoked_at   INTEGER
);
CREATE INDEX certificates_node ON certificates (node_id, issued_at DESC);
CREATE INDEX certificates_authority ON certificates (authority_id);
CREATE INDEX certificates_revoked ON certificates (revoked_at);
CREATE INDEX certificates_expiry ON certificates (not_after);

-- Until when the node may get a certificate with its key alone, and before when its certificates count as old.
ALTER TABLE nodes ADD COLUMN enroll_until INTEGER;
ALTER TABLE nodes ADD COLUMN renew_before INTEGER;
-- The configuration version that told the node of the newest root.
ALTER TABLE nodes ADD COLUMN trust_version INTEGER;
