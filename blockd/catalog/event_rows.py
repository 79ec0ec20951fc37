"""The statements about events, which triggers of migrations 6 and 9 write, as a rule."""

from __future__ import annotations

import sqlite3
from typing import Final

from blockd.domain.event import Event, EventFilter, EventKind, Place, ResourceNow, What
from blockd.domain.states import Status
from blockd.domain.units import now_timestamp

#: A fact about the catalog: which history its events are numbered in.
HISTORY: Final = "history"


class EventRows:
    """Part of a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def tell(self, kind: EventKind, resource_id: str, project_id: str, status: Status) -> None:
        """A resource is seen otherwise now, though its row has not changed."""
        self._sql.execute(
            "INSERT INTO events (at, kind, resource_id, project_id, what, status)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [now_timestamp(), kind, resource_id, project_id, What.CHANGED, status],
        )

    def told_in_error(self) -> set[str]:
        """The volumes and snapshots whose last event that is known says that they are in error."""
        rows = self._sql.execute(
            "SELECT resource_id FROM events e WHERE status = ? AND NOT EXISTS (SELECT 1"
            " FROM events l WHERE l.resource_id = e.resource_id AND l.sequence > e.sequence)",
            [Status.ERROR],
        )
        return {str(resource_id) for (resource_id,) in rows}

    def newest(self) -> Place:
        """The end of the history, as of this transaction."""
        (history,) = self._sql.execute("SELECT value FROM meta WHERE key = ?", [HISTORY]).fetchone()
        (last,) = self._sql.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()
        return Place(str(history), int(last))

    def oldest(self) -> Place:
        """The place before the first event that is known."""
        newest = self.newest()
        (first,) = self._sql.execute("SELECT min(sequence) FROM events").fetchone()
        return newest if first is None else Place(newest.history, int(first) - 1)

    def follows(self, place: Place) -> bool:
        """Whether all that happened since `place` is still known."""
        newest = self.newest()
        if place.history != newest.history or place.sequence > newest.sequence:
            return False
        return place.sequence >= self.oldest().sequence

    def after(self, sequence: int, wanted: EventFilter, most: int) -> list[Event]:
        """The first `most` that are wanted of those behind `sequence`, oldest first."""
        conditions = {"project_id": wanted.project_id, "resource_id": wanted.resource_id}
        given = {column: value for column, value in conditions.items() if value is not None}
        more = "".join(f" AND e.{column} = ?" for column in given)
        rows = self._sql.execute(
            "SELECT e.sequence, e.at, e.kind, e.resource_id, e.project_id, e.what, e.status,"
            " coalesce(v.name, s.name), coalesce(v.status, s.status, j.state),"
            " coalesce(v.error, s.error, j.error), coalesce(v.storage_class, s.storage_class),"
            " coalesce(v.disk, s.disk),"
            " EXISTS (SELECT 1 FROM attachments a WHERE a.resource_id = coalesce(v.id, s.id))"
            " FROM events e"
            " LEFT JOIN volumes v ON e.kind = 'volume' AND v.id = e.resource_id"
            " LEFT JOIN snapshots s ON e.kind = 'snapshot' AND s.id = e.resource_id"
            " LEFT JOIN jobs j ON e.kind = 'job' AND j.id = e.resource_id"
            f" WHERE e.sequence > ?{more} ORDER BY e.sequence LIMIT ?",
            [sequence, *given.values(), most],
        )
        return [
            Event(
                row[0],
                row[1],
                EventKind(row[2]),
                row[3],
                row[4],
                What(row[5]),
                row[6],
                None if row[8] is None else ResourceNow(*row[7:13]),
            )
            for row in rows
        ]
