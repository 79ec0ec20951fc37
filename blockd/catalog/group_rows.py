"""The statements about groups: which snapshots were taken together."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence


class GroupRows:
    """Part of a transaction. A snapshot's row takes its place in a group along when it goes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def add(self, group_id: str, snapshot_ids: Sequence[str]) -> None:
        """They are to be taken together."""
        self._sql.executemany(
            "INSERT INTO snapshot_groups (snapshot_id, group_id, place) VALUES (?, ?, ?)",
            [(snapshot_id, group_id, place) for place, snapshot_id in enumerate(snapshot_ids)],
        )

    def taken(self, group_id: str, suspended_ms: int) -> None:
        """They are; for so long their volumes stood still."""
        self._sql.execute(
            "UPDATE snapshot_groups SET suspended_ms = ? WHERE group_id = ?",
            [suspended_ms, group_id],
        )

    def members(self, group_id: str) -> list[str]:
        """Those of its snapshots that have a row, in order."""
        rows = self._sql.execute(
            "SELECT snapshot_id FROM snapshot_groups WHERE group_id = ? ORDER BY place", [group_id]
        )
        return [str(snapshot_id) for (snapshot_id,) in rows]

    def of(self, snapshot_id: str) -> tuple[str | None, int | None]:
        """The group of a snapshot and its `suspended_ms`; None for a snapshot of its own."""
        row = self._sql.execute(
            "SELECT group_id, suspended_ms FROM snapshot_groups WHERE snapshot_id = ?",
            [snapshot_id],
        ).fetchone()
        return (None, None) if row is None else (str(row[0]), row[1])
