-- Which attempt at a night's backup a run was (1: the first), and when a failed one is tried again.
ALTER TABLE backup_history
    ADD COLUMN IF NOT EXISTS attempt INT NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS retry_at TIMESTAMPTZ;
