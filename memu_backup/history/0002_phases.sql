-- How long a run took to write its backup and how long to re-read it, told apart.
ALTER TABLE backup_history
    ADD COLUMN IF NOT EXISTS write_seconds DOUBLE PRECISION,
    ADD COLUMN IF NOT EXISTS prove_seconds DOUBLE PRECISION;
