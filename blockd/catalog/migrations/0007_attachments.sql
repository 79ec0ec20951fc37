-- Which guest has which volume, as libvirt told last, and what of it is under way: the row is the journal of an
-- attachment being made or taken away.

CREATE TABLE attachments (
    id          TEXT PRIMARY KEY,
    volume_id   TEXT NOT NULL,
    uri         TEXT NOT NULL,
    domain_id   TEXT NOT NULL,
    domain_name TEXT NOT NULL,
    target      TEXT NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('attaching', 'attached', 'detaching')),
    created_at  TEXT NOT NULL,
    UNIQUE (volume_id, uri, domain_id)
) STRICT;

-- What a reader sees of the volume changes with them, so they are events of the volume.
CREATE TRIGGER attachment_made AFTER INSERT ON attachments BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    SELECT strftime('%Y-%m-%dT%H:%M:%f000Z'), 'volume', v.id, v.project_id, 'changed',
        CASE v.status WHEN 'available' THEN 'in_use' ELSE v.status END
    FROM volumes v WHERE v.id = new.volume_id;
END;
CREATE TRIGGER attachment_changed AFTER UPDATE ON attachments
WHEN (old.status, old.target, old.domain_name) IS NOT (new.status, new.target, new.domain_name)
BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    SELECT strftime('%Y-%m-%dT%H:%M:%f000Z'), 'volume', v.id, v.project_id, 'changed',
        CASE v.status WHEN 'available' THEN 'in_use' ELSE v.status END
    FROM volumes v WHERE v.id = new.volume_id;
END;
CREATE TRIGGER attachment_gone AFTER DELETE ON attachments BEGIN
    INSERT INTO events (at, kind, resource_id, project_id, what, status)
    SELECT strftime('%Y-%m-%dT%H:%M:%f000Z'), 'volume', v.id, v.project_id, 'changed',
        CASE WHEN v.status = 'available' AND EXISTS (SELECT 1 FROM attachments a WHERE a.volume_id = v.id)
             THEN 'in_use' ELSE v.status END
    FROM volumes v WHERE v.id = old.volume_id;
END;

-- Guests whose file systems may be frozen: written before, taken off when they are thawed.
CREATE TABLE freezes (
    uri         TEXT NOT NULL,
    domain_id   TEXT NOT NULL,
    domain_name TEXT NOT NULL,
    PRIMARY KEY (uri, domain_id)
) STRICT;

-- How a snapshot was taken: null of those that older versions took, of imports, and before it is taken.
ALTER TABLE snapshots ADD COLUMN consistency TEXT CHECK (consistency IN ('crash', 'filesystem'));
ALTER TABLE snapshots ADD COLUMN frozen_ms INTEGER;
