-- What a node said of its profile without an order: that a trial lapsed, or that somebody decided at the node itself.
ALTER TABLE profile_applications ADD COLUMN told TEXT CHECK (told IN ('confirmed', 'lapsed', 'rolled_back'));
ALTER TABLE profile_applications ADD COLUMN told_reason TEXT NOT NULL DEFAULT '';
ALTER TABLE profile_applications ADD COLUMN told_at BIGINT;
