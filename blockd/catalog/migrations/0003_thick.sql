-- Classes whose snapshots are stores over their origin: `origin_disk` is the disk that a snapshot
-- needs to be read (null: it needs none).
ALTER TABLE snapshots ADD COLUMN origin_disk TEXT;
CREATE INDEX snapshots_by_origin ON snapshots (origin_disk) WHERE origin_disk IS NOT NULL;

-- Disks of volumes that are erased but for their bytes, which snapshots still need.
CREATE TABLE kept_origins (
    disk          TEXT PRIMARY KEY,
    storage_class TEXT NOT NULL,
    size_bytes    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Jobs on volumes have no object: bucket and key may be null.
ALTER TABLE jobs RENAME TO old_jobs;
CREATE TABLE jobs (
    id             TEXT PRIMARY KEY,
    kind           TEXT NOT NULL,
    state          TEXT NOT NULL,
    project_id     TEXT NOT NULL,
    volume_id      TEXT,
    snapshot_id    TEXT,
    bucket         TEXT,
    key            TEXT,
    created_at     TEXT NOT NULL,
    started_at     TEXT,
    finished_at    TEXT,
    attempt        INTEGER NOT NULL,
    bytes_done     INTEGER NOT NULL,
    bytes_total    INTEGER,
    phase          TEXT NOT NULL,
    args           TEXT NOT NULL,
    content_digest TEXT,
    error          TEXT
) STRICT;
INSERT INTO jobs
    SELECT id, kind, state, project_id, NULL, snapshot_id, bucket, key, created_at, started_at,
        finished_at, attempt, bytes_done, bytes_total, phase, args, content_digest, error
    FROM old_jobs;
DROP TABLE old_jobs;

CREATE INDEX jobs_by_created ON jobs (created_at, id);
CREATE INDEX jobs_by_volume ON jobs (volume_id, created_at, id);
CREATE INDEX jobs_by_snapshot ON jobs (snapshot_id, created_at, id);
CREATE INDEX jobs_unfinished ON jobs (created_at, id) WHERE phase <> '';
-- Who needs a snapshot's disk for himself just now; empty as a rule, and asked with every snapshot.
CREATE INDEX jobs_that_hold ON jobs (snapshot_id, kind)
    WHERE phase <> '' AND kind IN ('clone', 'revert');
