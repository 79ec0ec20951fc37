"""The statements about disks: which of them somebody needs, whatever else is erased."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blockd.domain.job import JobKind
from blockd.domain.states import Status

#: Rows that have a disk: all but those in error, in the trash or not.
_WHOLE: Final = "status <> 'error' AND NOT (status = 'deleted' AND error IS NOT NULL)"

#: A snapshot that is not in the trash needs this disk of `t`.
_IN_NEED: Final = (
    "EXISTS (SELECT 1 FROM snapshots s"
    " WHERE s.origin_disk = t.disk AND s.status NOT IN ('deleted', 'error'))"
)


@dataclass(frozen=True, slots=True)
class DiskOwner:
    """Whose a disk is; `has_error`: of a deleted row it means that there are no bytes.

    Attributes:
        resource: `volume` or `snapshot`.
    """

    resource: str
    id: str
    disk: str
    size_bytes: int
    status: Status
    has_error: bool


class DiskRows:
    """Part of a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def to_keep(self, disks: Sequence[str]) -> set[str]:
        """Those of `disks` that hold bytes of something whole, in the trash or not.

        Its own, or as the origin of a snapshot.
        """
        marks = ", ".join("?" * len(disks))
        kept: set[str] = set()
        for column, table in (
            ("disk", "volumes"),
            ("disk", "snapshots"),
            ("origin_disk", "snapshots"),
        ):
            where = f"{column} IN ({marks}) AND {_WHOLE}"
            kept.update(self._texts(f"SELECT {column} FROM {table} WHERE {where}", disks))
        kept.update(self._texts(f"SELECT disk FROM kept_origins WHERE disk IN ({marks})", disks))
        return kept

    def at_rest(self, storage_class: str) -> dict[str, str]:
        """Every disk that must be there, whatever is under way, and whose it is, for people.

        Not that of a snapshot that is being merged into its volume: it is gone for a while.
        """
        rows = self._sql.execute(
            "SELECT disk, 'volume ' || id FROM volumes WHERE storage_class = ?1"
            f" AND status <> 'creating' AND {_WHOLE} UNION ALL"
            " SELECT disk, 'snapshot ' || id FROM snapshots WHERE storage_class = ?1"
            f" AND status <> 'creating' AND {_WHOLE} AND id NOT IN ("
            "  SELECT snapshot_id FROM jobs WHERE phase <> '' AND kind = ?2) UNION ALL"
            " SELECT disk, 'kept origin ' || disk FROM kept_origins WHERE storage_class = ?1",
            [storage_class, JobKind.REVERT],
        )
        return dict(rows.fetchall())

    def snapshots_of(self, origin_disk: str) -> int:
        """How many snapshots need this origin, those in the trash included."""
        (count,) = self._sql.execute(
            f"SELECT count(*) FROM snapshots WHERE origin_disk = ? AND {_WHOLE}", [origin_disk]
        ).fetchone()
        return int(count)

    def in_trash_of(self, origin_disk: str) -> list[str]:
        """The snapshots of this origin that are deleted and still have a disk, oldest first."""
        return self._texts(
            "SELECT id FROM snapshots WHERE origin_disk = ? AND status = 'deleted'"
            " AND error IS NULL ORDER BY deleted_at, id",
            [origin_disk],
        )

    def erasable(self, storage_class: str) -> tuple[dict[str, int], dict[str, int]]:
        """Disks that are gone once the trash is: of volumes, and of snapshots.

        With the sizes that their rows tell of.
        """
        origins = self._sql.execute(
            "SELECT disk, size_bytes FROM volumes t WHERE storage_class = ?1"
            f" AND status = 'deleted' AND error IS NULL AND NOT {_IN_NEED} UNION ALL"
            " SELECT disk, size_bytes FROM kept_origins t"
            f" WHERE storage_class = ?1 AND NOT {_IN_NEED}",
            [storage_class],
        ).fetchall()
        snapshots = self._sql.execute(
            "SELECT disk, size_bytes FROM snapshots"
            " WHERE storage_class = ? AND status = 'deleted' AND error IS NULL",
            [storage_class],
        ).fetchall()
        return dict(origins), dict(snapshots)

    def snapshot_on(self, disk: str) -> str | None:
        """The snapshot whose bytes this disk holds."""
        found = self._texts("SELECT id FROM snapshots WHERE disk = ?", [disk])
        return next(iter(found), None)

    def owners(self, storage_class: str) -> list[DiskOwner]:
        """Every volume and snapshot of a class."""
        rows = self._sql.execute(
            "SELECT 'volume', id, disk, size_bytes, status, error IS NOT NULL FROM volumes"
            " WHERE storage_class = ?1 UNION ALL"
            " SELECT 'snapshot', id, disk, size_bytes, status, error IS NOT NULL FROM snapshots"
            " WHERE storage_class = ?1",
            [storage_class],
        )
        return [
            DiskOwner(resource, id_, disk, size_bytes, Status(status), bool(has_error))
            for resource, id_, disk, size_bytes, status, has_error in rows
        ]

    def keep_origin(self, disk: str, storage_class: str, size_bytes: int) -> None:
        """Its volume is erased, and snapshots still need it."""
        row = [disk, storage_class, size_bytes]
        self._sql.execute("INSERT INTO kept_origins VALUES (?, ?, ?)", row)

    def kept_origins(self, storage_class: str) -> list[str]:
        """Every origin that outlived its volume."""
        where = "WHERE storage_class = ? ORDER BY disk"
        return self._texts(f"SELECT disk FROM kept_origins {where}", [storage_class])

    def release_origins(self, disks: Sequence[str]) -> list[str]:
        """Forget, and answer, the kept ones among `disks` that no snapshot needs any more."""
        released = []
        for disk in disks:
            kept = self._texts("SELECT disk FROM kept_origins WHERE disk = ?", [disk])
            if kept and not self.snapshots_of(disk):
                self._sql.execute("DELETE FROM kept_origins WHERE disk = ?", [disk])
                released.append(disk)
        return released

    def hidden(self, storage_class: str) -> list[str]:
        """Disks behind no front that snapshots need: of the trash, of reverts, kept origins."""
        volumes = self._texts(
            "SELECT disk FROM volumes WHERE storage_class = ? AND error IS NULL"
            " AND status = 'deleted' ORDER BY disk",
            [storage_class],
        )
        return [
            *volumes,
            *self.reverting(storage_class).values(),
            *self.kept_origins(storage_class),
        ]

    def reverting(self, storage_class: str) -> dict[str, str]:
        """The volumes that are being merged with a snapshot, and their disks."""
        rows = self._sql.execute(
            "SELECT v.id, v.disk FROM jobs j JOIN volumes v ON v.id = j.volume_id"
            " WHERE j.phase <> '' AND j.kind = ? AND v.storage_class = ? ORDER BY v.id",
            [JobKind.REVERT, storage_class],
        )
        return {str(id_): str(disk) for id_, disk in rows}

    def is_reverting(self, volume_id: str) -> bool:
        """Whether the volume's front is a revert's to take down and bring up."""
        sql = "SELECT id FROM jobs WHERE volume_id = ? AND phase <> '' AND kind = ?"
        return bool(self._texts(sql, [volume_id, JobKind.REVERT]))

    def named(self) -> set[str]:
        """Every disk that a row names, of whatever status."""
        tables = ("volumes", "snapshots", "kept_origins")
        return {disk for table in tables for disk in self._texts(f"SELECT disk FROM {table}", [])}

    def _texts(self, sql: str, args: Sequence[object]) -> list[str]:
        return [str(text) for (text,) in self._sql.execute(sql, args)]
