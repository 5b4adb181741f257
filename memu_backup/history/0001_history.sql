-- The spec's table (7.2), with TIMESTAMPTZ (docs/decisions/0002-history-times.md). A table that the spec's own SQL made
-- is taken over: everything below it only adds, and keeps rows and writers that know the spec's columns alone.
CREATE TABLE IF NOT EXISTS backup_history (
    id SERIAL PRIMARY KEY,
    filename TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    status TEXT NOT NULL,
    error TEXT,
    duration_seconds INT,
    usb_copied_at TIMESTAMPTZ,
    notification_sent BOOLEAN DEFAULT FALSE,
    created_at TIMESTAMPTZ DEFAULT NOW()
);

CREATE INDEX IF NOT EXISTS idx_backup_created ON backup_history(created_at DESC);

-- Without USING: a TIMESTAMP is read in the session's time zone, the one in which NOW() wrote it.
ALTER TABLE backup_history
    ALTER COLUMN created_at TYPE TIMESTAMPTZ,
    ALTER COLUMN usb_copied_at TYPE TIMESTAMPTZ;

UPDATE backup_history SET created_at = 'epoch' WHERE created_at IS NULL;
UPDATE backup_history SET notification_sent = FALSE WHERE notification_sent IS NULL;

ALTER TABLE backup_history
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN notification_sent SET NOT NULL,
    -- gen_random_uuid() would ask for PostgreSQL 13.
    ADD COLUMN IF NOT EXISTS run_id TEXT NOT NULL DEFAULT md5(random()::text || clock_timestamp()::text),
    ADD COLUMN IF NOT EXISTS host TEXT NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS job TEXT NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS trigger TEXT NOT NULL DEFAULT 'schedule'
        CHECK (trigger IN ('schedule', 'manual', 'catch_up')),
    ADD COLUMN IF NOT EXISTS location TEXT NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS content_bytes BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS files BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS error_code TEXT,
    ADD COLUMN IF NOT EXISTS downtime_seconds DOUBLE PRECISION,
    ADD COLUMN IF NOT EXISTS finished_at TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS verified_at TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS deleted_at TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS sha256 TEXT,
    ADD COLUMN IF NOT EXISTS warnings JSONB NOT NULL DEFAULT '[]';

CREATE UNIQUE INDEX IF NOT EXISTS idx_backup_run ON backup_history(run_id);

-- NOT VALID: an old row with a word of its own is no reason to refuse the table.
ALTER TABLE backup_history DROP CONSTRAINT IF EXISTS backup_history_status;
ALTER TABLE backup_history ADD CONSTRAINT backup_history_status
    CHECK (status IN ('in_progress', 'success', 'partial', 'failed')) NOT VALID;

CREATE TABLE IF NOT EXISTS backup_audit (
    event_id TEXT PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    host TEXT NOT NULL,
    actor TEXT NOT NULL,
    origin TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL DEFAULT '',
    outcome TEXT NOT NULL DEFAULT ''
);

CREATE INDEX IF NOT EXISTS idx_backup_audit_created ON backup_audit(created_at DESC);

-- In the database and not in our code, so that a row from any writer is announced.
CREATE OR REPLACE FUNCTION backup_history_announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('memu_backup', json_build_object('run_id', NEW.run_id, 'status', NEW.status)::text);
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS backup_history_announce ON backup_history;
CREATE TRIGGER backup_history_announce AFTER INSERT OR UPDATE ON backup_history
    FOR EACH ROW EXECUTE FUNCTION backup_history_announce();
