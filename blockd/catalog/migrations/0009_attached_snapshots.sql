-- A guest may have a snapshot, read-only, as it may have a volume: the row names either, by its id.

DROP TRIGGER attachment_made;
DROP TRIGGER attachment_changed;
DROP TRIGGER attachment_gone;
ALTER TABLE attachments RENAME COLUMN volume_id TO resource_id;

-- What a reader sees of it changes with them, so they are events of the volume, or of the snapshot.
CREATE VIEW attachables AS
    SELECT 'volume' AS kind, id, project_id, status FROM volumes UNION ALL
    SELECT 'snapshot', id, project_id, status FROM snapshots;
CREATE TRIGGER attachment_made AFTER INSERT ON attachments BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    SELECT strftime('%Y-%m-%dT%H:%M:%f000Z'), r.kind, r.id, r.project_id, 'changed',
        CASE r.status WHEN 'available' THEN 'in_use' ELSE r.status END
    FROM attachables r WHERE r.id = new.resource_id;
END;
CREATE TRIGGER attachment_changed AFTER UPDATE ON attachments
WHEN (old.status, old.target, old.domain_name) IS NOT (new.status, new.target, new.domain_name)
BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    SELECT strftime('%Y-%m-%dT%H:%M:%f000Z'), r.kind, r.id, r.project_id, 'changed',
        CASE r.status WHEN 'available' THEN 'in_use' ELSE r.status END
    FROM attachables r WHERE r.id = new.resource_id;
END;
CREATE TRIGGER attachment_gone AFTER DELETE ON attachments BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    SELECT strftime('%Y-%m-%dT%H:%M:%f000Z'), r.kind, r.id, r.project_id, 'changed',
        CASE WHEN r.status = 'available' AND EXISTS (
            SELECT 1 FROM attachments a WHERE a.resource_id = r.id) THEN 'in_use' ELSE r.status END
    FROM attachables r WHERE r.id = old.resource_id;
END;
