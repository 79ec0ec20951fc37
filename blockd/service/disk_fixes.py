"""What becomes of disks that the catalog lacks, and of what is left of something in error.

Nothing here erases what anybody may have been promised (docs/decisions/0015-doctor.md).
"""

from __future__ import annotations

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import StorageError
from blockd.domain.intent import Intent, new_id
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import AVAILABLE
from blockd.domain.units import now_timestamp
from blockd.service.classes import StorageClass
from blockd.service.comparison import adoptable, expectation, found_name
from blockd.service.erasures import add_erase
from blockd.service.operations import Operations


class DiskFixes:
    """All within the class's turn. Each looks once more whether it is still so."""

    def __init__(self, catalog: Catalog, operations: Operations, project_id: str) -> None:
        """`project_id`: whose what is found will be."""
        self._catalog, self._operations, self._project_id = catalog, operations, project_id

    async def adopt(self, storage_class: StorageClass, disk: str) -> None:
        """Make a disk that the catalog lacks a snapshot, to be looked at, cloned, or deleted."""
        found = await storage_class.driver.inventory()
        expected = await self._catalog.read(lambda tx: expectation(storage_class, tx))
        names = expected.whole.keys() | expected.broken.keys() | expected.passing
        there = found.disks.get(disk)
        if disk in names or there is None:
            return
        if not adoptable(there, found, is_thick=storage_class.is_thick):
            raise StorageError(f"{disk} cannot be a snapshot by itself, or is in use")
        await storage_class.driver.seal(disk)
        now = now_timestamp()
        snapshot = Snapshot(
            id=new_id(),
            project_id=self._project_id,
            name=found_name(disk),
            size_bytes=there.size_bytes,
            storage_class=storage_class.name,
            status=AVAILABLE,
            public=False,
            tags=("found",),
            volume_id=None,
            parent=None,
            disk=disk,
            created_at=now,
            updated_at=now,
        )
        await self._catalog.write("snapshot found", lambda tx: tx.add_snapshot(snapshot))

    async def erase_left(self, storage_class: StorageClass, disk: str) -> None:
        """Erase, by the journal, what is left of something in error."""

        def erase(tx: Transaction) -> Intent | None:
            expected = expectation(storage_class, tx)
            if disk not in expected.broken or disk in expected.passing:
                return None
            return add_erase(tx, storage_class.name, [disk], [])

        intent = await self._catalog.write("disk left", erase)
        if intent is not None:
            self._operations.submit(intent)
