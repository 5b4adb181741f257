-- Which backups were brought back to a scratch place and tried there, and what came of it.
CREATE TABLE IF NOT EXISTS backup_drills (
    drill_id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    job TEXT NOT NULL,
    filename TEXT NOT NULL,
    made_at TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('begun', 'whole', 'failed', 'untried', 'interrupted')),
    lay_at TEXT NOT NULL DEFAULT '',
    finished_at TIMESTAMPTZ,
    size_bytes BIGINT NOT NULL DEFAULT 0,
    files BIGINT NOT NULL DEFAULT 0,
    seconds DOUBLE PRECISION NOT NULL DEFAULT 0,
    problems JSONB NOT NULL DEFAULT '[]',
    unchecked JSONB NOT NULL DEFAULT '[]',
    whole_in TEXT NOT NULL DEFAULT ''
);

CREATE INDEX IF NOT EXISTS idx_backup_drills ON backup_drills(host, created_at DESC);
