ALTER TABLE snapshots ADD COLUMN content_digest TEXT;

-- Exports, imports, verifications: the journal of each until it has ended, its record afterwards.
-- pending: something of it is still to be undone after its end (an upload to be aborted).
CREATE TABLE jobs (
    id             TEXT PRIMARY KEY,
    kind           TEXT NOT NULL,
    state          TEXT NOT NULL,
    project_id     TEXT NOT NULL,
    snapshot_id    TEXT,
    bucket         TEXT NOT NULL,
    key            TEXT NOT NULL,
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

CREATE INDEX jobs_by_created ON jobs (created_at, id);
CREATE INDEX jobs_by_snapshot ON jobs (snapshot_id, created_at, id);
CREATE INDEX jobs_unfinished ON jobs (created_at, id) WHERE phase <> '';
