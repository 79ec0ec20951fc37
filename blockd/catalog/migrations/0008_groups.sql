-- Snapshots that were taken together, of one instant; `place` is their volume's in the request, and
-- `suspended_ms` for how long the volumes stood still: null before they are taken.
CREATE TABLE snapshot_groups (
    snapshot_id  TEXT PRIMARY KEY REFERENCES snapshots (id) ON DELETE CASCADE,
    group_id     TEXT NOT NULL,
    place        INTEGER NOT NULL,
    suspended_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_groups_by_group ON snapshot_groups (group_id, place);
