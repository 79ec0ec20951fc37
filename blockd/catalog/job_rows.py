"""The statements about jobs: journal of those under way, record of those that ended."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from blockd.domain.job import Job, JobFilter, JobKind, JobState, Phase
from blockd.domain.listing import Page

_COLUMNS: Final = (
    "id, kind, state, project_id, volume_id, snapshot_id, bucket, key, created_at, started_at, "
    "finished_at, attempt, bytes_done, bytes_total, phase, args, content_digest, error"
)


class JobRows:
    """Part of a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def get(self, job_id: str) -> Job | None:
        """The job, None if it is not known or no longer kept."""
        return next(iter(self._select("WHERE id = ?", [job_id])), None)

    def add(self, job: Job) -> None:
        """Insert a new row."""
        marks = ", ".join("?" * len(_COLUMNS.split(",")))
        self._sql.execute(f"INSERT INTO jobs ({_COLUMNS}) VALUES ({marks})", _row(job))

    def put(self, job: Job) -> None:
        """Replace the row."""
        edits = ", ".join(f"{column.strip()} = ?" for column in _COLUMNS.split(",")[1:])
        self._sql.execute(f"UPDATE jobs SET {edits} WHERE id = ?", [*_row(job)[1:], job.id])

    def unfinished(self) -> list[Job]:
        """Those of which something is still to be done or undone, oldest first."""
        return self._select("WHERE phase <> '' ORDER BY created_at, id", [])

    def export_to(self, bucket: str, key: str) -> Job | None:
        """An unfinished export to this object."""
        where = "WHERE phase <> '' AND kind = ? AND bucket = ? AND key = ?"
        return next(iter(self._select(where, [JobKind.EXPORT, bucket, key])), None)

    def with_uploads(self) -> list[Job]:
        """Every job that has, or had, an upload: those that ended for as long as they are kept."""
        return self._select("WHERE bucket IS NOT NULL AND kind = ? ORDER BY id", [JobKind.EXPORT])

    def holders(self) -> dict[str, JobKind]:
        """The snapshots whose disk is needed by a clone's copy or a revert's merge under way."""
        rows = self._sql.execute(
            "SELECT snapshot_id, max(kind) FROM jobs"
            " WHERE phase <> '' AND kind IN ('clone', 'revert') GROUP BY snapshot_id"
        )
        return {str(id_): JobKind(kind) for id_, kind in rows}

    def of_snapshot(self, snapshot_id: str) -> list[Job]:
        """The unfinished ones that need this snapshot's bytes."""
        return self._select("WHERE snapshot_id = ? AND phase <> '' ORDER BY id", [snapshot_id])

    def page(self, wanted: JobFilter, page: Page) -> tuple[list[Job], int]:
        """One page, newest first, and the number of matches on all pages."""
        conditions = {
            "kind": wanted.kind,
            "state": wanted.state,
            "volume_id": wanted.volume_id,
            "snapshot_id": wanted.snapshot_id,
            "project_id": wanted.project_id,
        }
        given = {column: value for column, value in conditions.items() if value is not None}
        where = "WHERE " + " AND ".join(f"{column} = ?" for column in given) if given else ""
        args = list(given.values())
        (total,) = self._sql.execute(f"SELECT count(*) FROM jobs {where}", args).fetchone()
        window = [page.size, min((page.number - 1) * page.size, 2**62)]
        order = "ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?"
        return self._select(f"{where} {order}", [*args, *window]), int(total)

    def forget(self, before: str) -> None:
        """Drop the record of what ended before an instant and left nothing to be done."""
        self._sql.execute("DELETE FROM jobs WHERE phase = '' AND finished_at < ?", [before])

    def _select(self, rest: str, args: Sequence[object]) -> list[Job]:
        rows = self._sql.execute(f"SELECT {_COLUMNS} FROM jobs {rest}", args)
        return [_job(row) for row in rows]


def _row(job: Job) -> list[object]:
    return [
        job.id,
        job.kind,
        job.state,
        job.project_id,
        job.volume_id,
        job.snapshot_id,
        job.bucket,
        job.key,
        job.created_at,
        job.started_at,
        job.finished_at,
        job.attempt,
        job.bytes_done,
        job.bytes_total,
        job.phase,
        json.dumps(job.args),
        job.content_digest,
        job.error,
    ]


def _job(row: Sequence[Any]) -> Job:
    values = list(row)
    values[1:3] = JobKind(row[1]), JobState(row[2])
    values[14:16] = Phase(row[14]), json.loads(row[15])
    return Job(*values)
