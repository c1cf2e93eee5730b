-- Advances with every change of what any node of the workspace should do: what was read at one revision is still true
-- while it is the same.
ALTER TABLE workspaces ADD COLUMN config_revision INTEGER NOT NULL DEFAULT 0;
