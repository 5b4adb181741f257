-- The passport of each drive that gets copies, so that it is known where the family's data lies and how old it is there.
CREATE TABLE IF NOT EXISTS backup_drives (
    drive_id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    fs_uuid TEXT NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    filesystem TEXT NOT NULL DEFAULT '',
    size_bytes BIGINT NOT NULL DEFAULT 0,
    first_seen_at TIMESTAMPTZ NOT NULL,
    last_seen_at TIMESTAMPTZ NOT NULL,
    name TEXT NOT NULL DEFAULT '',
    kept_at TEXT NOT NULL DEFAULT '',
    marker TEXT NOT NULL DEFAULT '',
    trusted_at TIMESTAMPTZ,
    last_copied_at TIMESTAMPTZ,
    copies INT NOT NULL DEFAULT 0,
    bytes_per_second DOUBLE PRECISION
);
