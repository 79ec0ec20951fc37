-- Instants are UTC text with six decimals and 'Z', so that text order is time order.
-- tags is a JSON array of strings; args a JSON object.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE volumes (
    id                 TEXT PRIMARY KEY,
    project_id         TEXT NOT NULL,
    name               TEXT NOT NULL,
    size_bytes         INTEGER NOT NULL,
    perf_iops          INTEGER NOT NULL,
    storage_class      TEXT NOT NULL,
    status             TEXT NOT NULL,
    tags               TEXT NOT NULL,
    parent_snapshot_id TEXT,
    disk               TEXT NOT NULL UNIQUE,
    created_at         TEXT NOT NULL,
    updated_at         TEXT NOT NULL,
    last_detached_at   TEXT,
    deleted_at         TEXT,
    error              TEXT
) STRICT;

-- With status, so that counting and skipping rows need no look at the table.
CREATE INDEX volumes_by_project_created ON volumes (project_id, created_at, id, status);
CREATE INDEX volumes_by_project_name ON volumes (project_id, name, id, status);
CREATE INDEX volumes_by_created ON volumes (created_at, id, status);
CREATE INDEX volumes_by_name ON volumes (name, id, status);
CREATE INDEX volumes_in_trash ON volumes (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE snapshots (
    id            TEXT PRIMARY KEY,
    project_id    TEXT NOT NULL,
    name          TEXT NOT NULL,
    size_bytes    INTEGER NOT NULL,
    storage_class TEXT NOT NULL,
    status        TEXT NOT NULL,
    public        INTEGER NOT NULL,
    tags          TEXT NOT NULL,
    volume_id     TEXT,
    disk          TEXT NOT NULL UNIQUE,
    created_at    TEXT NOT NULL,
    updated_at    TEXT NOT NULL,
    deleted_at    TEXT,
    error         TEXT
) STRICT;

CREATE INDEX snapshots_by_project_created ON snapshots (project_id, created_at, id, status);
CREATE INDEX snapshots_by_project_name ON snapshots (project_id, name, id, status);
CREATE INDEX snapshots_by_created ON snapshots (created_at, id, status);
CREATE INDEX snapshots_by_name ON snapshots (name, id, status);
CREATE INDEX snapshots_by_volume ON snapshots (volume_id, created_at, id, status);
CREATE INDEX snapshots_in_trash ON snapshots (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE intents (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    verb          TEXT NOT NULL,
    resource_id   TEXT NOT NULL,
    storage_class TEXT NOT NULL,
    phase         TEXT NOT NULL,
    args          TEXT NOT NULL
) STRICT;

CREATE TABLE answers (
    key         TEXT NOT NULL,
    route       TEXT NOT NULL,
    body_sha256 TEXT NOT NULL,
    status      INTEGER NOT NULL,
    body        TEXT NOT NULL,
    created_at  TEXT NOT NULL,
    PRIMARY KEY (key, route)
) STRICT, WITHOUT ROWID;

CREATE INDEX answers_by_age ON answers (created_at);
