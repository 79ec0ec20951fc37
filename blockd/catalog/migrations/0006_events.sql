-- What was done to volumes, snapshots and jobs, row by row, in the transactions that did it. Triggers, so
-- that no statement can forget to tell. Only what a user can see of a row is a change of it.

CREATE TABLE events (
    sequence    INTEGER PRIMARY KEY,
    at          TEXT NOT NULL,
    kind        TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    project_id  TEXT NOT NULL,
    what        TEXT NOT NULL,
    status      TEXT NOT NULL
) STRICT;

-- The newest 10,000 are kept, and up to 249 more. The newest is always there, so no number comes twice.
CREATE TRIGGER events_kept AFTER INSERT ON events WHEN new.sequence % 250 = 0 BEGIN
    DELETE FROM events WHERE sequence <= new.sequence - 10000;
END;

CREATE TRIGGER volume_created AFTER INSERT ON volumes BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'volume', new.id, new.project_id, 'created', new.status);
END;
CREATE TRIGGER volume_changed AFTER UPDATE ON volumes
WHEN (old.name, old.size_bytes, old.perf_iops, old.status, old.tags, old.parent_snapshot_id,
      old.updated_at, old.last_detached_at, old.deleted_at, old.error)
  IS NOT (new.name, new.size_bytes, new.perf_iops, new.status, new.tags, new.parent_snapshot_id,
      new.updated_at, new.last_detached_at, new.deleted_at, new.error)
BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'volume', new.id, new.project_id, 'changed', new.status);
END;
CREATE TRIGGER volume_removed AFTER DELETE ON volumes BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'volume', old.id, old.project_id, 'removed', old.status);
END;

CREATE TRIGGER snapshot_created AFTER INSERT ON snapshots BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'snapshot', new.id, new.project_id, 'created', new.status);
END;
CREATE TRIGGER snapshot_changed AFTER UPDATE ON snapshots
WHEN (old.name, old.size_bytes, old.status, old.public, old.tags, old.volume_id, old.updated_at,
      old.deleted_at, old.error, old.content_digest)
  IS NOT (new.name, new.size_bytes, new.status, new.public, new.tags, new.volume_id, new.updated_at,
      new.deleted_at, new.error, new.content_digest)
BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'snapshot', new.id, new.project_id, 'changed', new.status);
END;
CREATE TRIGGER snapshot_removed AFTER DELETE ON snapshots BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'snapshot', old.id, old.project_id, 'removed', old.status);
END;

CREATE TRIGGER job_created AFTER INSERT ON jobs BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'job', new.id, new.project_id, 'created', new.state);
END;
CREATE TRIGGER job_changed AFTER UPDATE ON jobs
WHEN (old.state, old.attempt, old.bytes_done, old.bytes_total, old.started_at, old.finished_at,
      old.snapshot_id, old.content_digest, old.error)
  IS NOT (new.state, new.attempt, new.bytes_done, new.bytes_total, new.started_at, new.finished_at,
      new.snapshot_id, new.content_digest, new.error)
BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'job', new.id, new.project_id, 'changed', new.state);
END;
CREATE TRIGGER job_removed AFTER DELETE ON jobs BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    VALUES (strftime('%Y-%m-%dT%H:%M:%f000Z'), 'job', old.id, old.project_id, 'removed', old.state);
END;

-- Numbers count within a history. A catalog that is restored from a copy begins another one.
INSERT INTO meta VALUES ('history', lower(hex(randomblob(4))));
