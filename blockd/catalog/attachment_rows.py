"""The statements about guests: which has which volume or snapshot, and which may be frozen."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from blockd.domain.guest import Attachment, AttachmentStatus, GuestKey

_COLUMNS: Final = "id, resource_id, uri, domain_id, domain_name, target, status, created_at"


class AttachmentRows:
    """Part of a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def get(self, attachment_id: str) -> Attachment | None:
        """The attachment, None when it is gone."""
        return next(iter(self._select("WHERE id = ?", [attachment_id])), None)

    def all(self) -> list[Attachment]:
        """Every one of them, oldest first."""
        return self._select("ORDER BY created_at, id", [])

    def of(self, resource_id: str) -> tuple[Attachment, ...]:
        """Those of one volume or snapshot, oldest first."""
        return tuple(self._select("WHERE resource_id = ? ORDER BY created_at, id", [resource_id]))

    def by_resource(self) -> dict[str, tuple[Attachment, ...]]:
        """Those of each volume and snapshot that has any."""
        found: dict[str, tuple[Attachment, ...]] = {}
        for attachment in self.all():
            found[attachment.volume_id] = (*found.get(attachment.volume_id, ()), attachment)
        return found

    def resource_ids(self) -> set[str]:
        """The volumes and snapshots that have any."""
        return {str(id_) for (id_,) in self._sql.execute("SELECT resource_id FROM attachments")}

    def told_of(self) -> list[tuple[Attachment, int, int | None]]:
        """Those made, of volumes at rest, with the volume's size in bytes and its `perf_iops`."""
        columns = ", ".join(f"a.{column}" for column in _COLUMNS.split(", "))
        rows = self._sql.execute(
            f"SELECT {columns}, v.size_bytes, v.perf_iops FROM attachments a"
            " JOIN volumes v ON v.id = a.resource_id"
            " WHERE a.status = 'attached' AND v.status = 'available' ORDER BY a.created_at, a.id"
        )
        return [(_attachment(row), int(row[8]), row[9] or None) for row in rows]

    def put(self, attachment: Attachment) -> None:
        """Insert the row, or replace it."""
        marks = ", ".join("?" * len(_COLUMNS.split(", ")))
        edits = "domain_name = excluded.domain_name, target = excluded.target"
        self._sql.execute(
            f"INSERT INTO attachments ({_COLUMNS}) VALUES ({marks})"
            f" ON CONFLICT (id) DO UPDATE SET {edits}, status = excluded.status",
            [
                attachment.id,
                attachment.volume_id,
                attachment.guest.uri,
                attachment.guest.domain_id,
                attachment.domain_name,
                attachment.target,
                attachment.status,
                attachment.created_at,
            ],
        )

    def remove(self, attachment_id: str) -> None:
        """Forget the row."""
        self._sql.execute("DELETE FROM attachments WHERE id = ?", [attachment_id])

    def frozen(self) -> list[tuple[GuestKey, str]]:
        """The guests that may be frozen, and their names."""
        rows = self._sql.execute("SELECT uri, domain_id, domain_name FROM freezes")
        return [(GuestKey(uri, domain_id), name) for uri, domain_id, name in rows]

    def add_freeze(self, guest: GuestKey, name: str) -> None:
        """A guest is about to be frozen."""
        self._sql.execute(
            "REPLACE INTO freezes VALUES (?, ?, ?)", [guest.uri, guest.domain_id, name]
        )

    def remove_freeze(self, guest: GuestKey) -> None:
        """It is thawed, or gone."""
        self._sql.execute(
            "DELETE FROM freezes WHERE uri = ? AND domain_id = ?", [guest.uri, guest.domain_id]
        )

    def _select(self, rest: str, args: Sequence[object]) -> list[Attachment]:
        rows = self._sql.execute(f"SELECT {_COLUMNS} FROM attachments {rest}", args)
        return [_attachment(row) for row in rows]


def _attachment(row: Sequence[Any]) -> Attachment:
    guest = GuestKey(row[2], row[3])
    return Attachment(row[0], row[1], guest, row[4], row[5], AttachmentStatus(row[6]), row[7])
