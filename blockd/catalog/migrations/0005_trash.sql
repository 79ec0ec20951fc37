-- Since when things are in the trash, by a clock that nobody sets (service/steady_clock.py): seconds,
-- which were Unix time when it began to run.
CREATE TABLE trash (
    id    TEXT PRIMARY KEY,
    since REAL NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO trash
    SELECT id, CAST(strftime('%s', deleted_at) AS REAL) FROM volumes WHERE status = 'deleted'
    UNION ALL SELECT id, CAST(strftime('%s', deleted_at) AS REAL) FROM snapshots WHERE status = 'deleted';
