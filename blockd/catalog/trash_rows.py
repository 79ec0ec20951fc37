"""The statements about the trash: since when things are in it, by a clock that nobody sets."""

from __future__ import annotations

import sqlite3


class TrashRows:
    """Part of a transaction. `since` is by `service/steady_clock.py`; `deleted_at` people see."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def put(self, resource_id: str, since: float) -> None:
        """A volume or snapshot was deleted."""
        self._sql.execute("REPLACE INTO trash VALUES (?, ?)", [resource_id, since])

    def knows_all(self) -> bool:
        """Whether of everything in the trash it is known since when it is there."""
        (unknown,) = self._sql.execute(
            "SELECT EXISTS (SELECT 1 FROM volumes WHERE status = 'deleted'"
            " AND id NOT IN (SELECT id FROM trash)) OR EXISTS (SELECT 1 FROM snapshots"
            " WHERE status = 'deleted' AND id NOT IN (SELECT id FROM trash))"
        ).fetchone()
        return not unknown

    def date_unknown(self, now: float) -> None:
        """What it is not known of is there since now."""
        self._sql.execute(
            "INSERT OR IGNORE INTO trash SELECT id, ?1 FROM volumes WHERE status = 'deleted'"
            " UNION ALL SELECT id, ?1 FROM snapshots WHERE status = 'deleted'",
            [now],
        )

    def forget(self, resource_id: str) -> None:
        """It is erased."""
        self._sql.execute("DELETE FROM trash WHERE id = ?", [resource_id])

    def due(
        self, storage_class: str, before: float, most: int, *, for_room: bool = False
    ) -> tuple[list[str], list[str]]:
        """Ids of volumes and of snapshots that are there since before `before`, oldest first.

        Args:
            for_room: without volumes whose disk would stay, as a living snapshot needs it.
        """
        rows = self._sql.execute(
            "SELECT kind, id FROM ("
            " SELECT 'v' AS kind, v.id, t.since FROM volumes v JOIN trash t ON t.id = v.id"
            "  WHERE v.deleted_at IS NOT NULL AND t.since < ?1 AND v.storage_class = ?2"
            "  AND NOT (?4 AND EXISTS (SELECT 1 FROM snapshots s"
            "   WHERE s.origin_disk = v.disk AND s.status NOT IN ('deleted', 'error')))"
            " UNION ALL SELECT 's', s.id, t.since FROM snapshots s JOIN trash t ON t.id = s.id"
            "  WHERE s.deleted_at IS NOT NULL AND t.since < ?1 AND s.storage_class = ?2"
            ") ORDER BY since, id LIMIT ?3",
            [before, storage_class, most, for_room],
        ).fetchall()
        return [id_ for kind, id_ in rows if kind == "v"], [
            id_ for kind, id_ in rows if kind == "s"
        ]

    def oldest(self) -> float | None:
        """Since when the first thing is in the trash."""
        (oldest,) = self._sql.execute(
            "SELECT min(since) FROM ("
            "SELECT t.since FROM volumes v JOIN trash t ON t.id = v.id"
            " WHERE v.deleted_at IS NOT NULL"
            " UNION ALL SELECT t.since FROM snapshots s JOIN trash t ON t.id = s.id"
            " WHERE s.deleted_at IS NOT NULL)"
        ).fetchone()
        return None if oldest is None else float(oldest)
