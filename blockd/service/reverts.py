"""Giving a volume the bytes of a snapshot again: what is allowed, and what is journalled.

A thin class puts another disk behind the front (`steps.py`), a thick one merges (`thick_steps.py`).
"""

from __future__ import annotations

from dataclasses import replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import InUse, PreconditionFailed, TransientState
from blockd.domain.intent import Intent, Verb, disk_name, new_id
from blockd.domain.job import JobKind
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import Event, move
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.service.answers import Remember, remember_answer
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.jobs import Jobs, volume_job
from blockd.service.operations import Operations
from blockd.service.rows import living_volume, readable_snapshot
from blockd.service.steps import PREPARE
from blockd.service.trash import Trash


class Reverts:
    """See `Volumes.revert`."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        trash: Trash,
        jobs: Jobs,
    ) -> None:
        self._catalog, self._classes = catalog, classes
        self._operations, self._trash, self._jobs = operations, trash, jobs

    async def begin(
        self,
        volume_id: str,
        snapshot_id: str,
        keep_previous: bool,
        remember: Remember[Volume] | None,
    ) -> Volume:
        """Journal the revert and submit it."""
        volume = await self._catalog.read(lambda tx: living_volume(tx, volume_id))
        storage_class = self._classes[volume.storage_class]
        self._classes.check_there(volume)
        self._classes.check_there(
            await self._catalog.read(lambda tx: readable_snapshot(tx, snapshot_id))
        )
        if not storage_class.is_thick:
            await self._trash.pool_with_room(storage_class, "snapshot")
            begin = _Begin(
                storage_class, self._trash, volume_id, snapshot_id, keep_previous, remember
            )
            volume, intent = await self._catalog.write("volume reverting", begin.intent)
            self._operations.submit(intent)
            return volume
        snapshot = await self._catalog.read(
            lambda tx: _revertible(tx, storage_class, volume_id, snapshot_id)[1]
        )
        if keep_previous:
            await self._trash.check_way(storage_class, volume, spare=1)
        async with storage_class.turn_soon():
            needs_bytes = await storage_class.driver.revert_bytes(
                volume.disk, snapshot.disk, keep=keep_previous
            )
        job_id = new_id()
        begin = _Begin(
            storage_class,
            self._trash,
            volume_id,
            snapshot_id,
            keep_previous,
            remember,
            job_id,
            needs_bytes,
        )
        async with self._trash.room(storage_class, "snapshot", job_id, needs_bytes):
            volume, erasure = await self._catalog.write("volume reverting", begin.job)
        self._trash.way_made(erasure)
        self._jobs.submit(job_id)
        return volume


class _Begin:
    """The transaction that journals one revert."""

    def __init__(
        self,
        storage_class: StorageClass,
        trash: Trash,
        volume_id: str,
        snapshot_id: str,
        keep_previous: bool,
        remember: Remember[Volume] | None,
        job_id: str = "",
        needs_bytes: int = 0,
    ) -> None:
        self._class, self._volume_id, self._snapshot_id = storage_class, volume_id, snapshot_id
        self._keeps, self._remember, self._job_id = keep_previous, remember, job_id
        self._trash, self._needs_bytes = trash, needs_bytes

    def intent(self, tx: Transaction) -> tuple[Volume, Intent]:
        """Thin."""
        row, snapshot = self._changing(tx)
        args = {
            "from_disk": snapshot.disk,
            "old_disk": row.disk,
            "new_disk": disk_name(new_id()),
            **self._keep(row),
        }
        intent = tx.add_intent(Verb.REVERT_VOLUME, row.id, row.storage_class, PREPARE, args)
        remember_answer(tx, row, self._remember)
        return row, intent

    def job(self, tx: Transaction) -> tuple[Volume, Intent | None]:
        """Thick; with the erasure of what makes way for the snapshot that is kept."""
        row, snapshot = self._changing(tx)
        erasure = self._trash.make_way(tx, self._class, row, spare=1) if self._keeps else None
        args = {**self._keep(row), "needs_bytes": self._needs_bytes}
        tx.jobs.add(volume_job(self._job_id, JobKind.REVERT, row, snapshot.id, args))
        remember_answer(tx, row, self._remember)
        return row, erasure

    def _changing(self, tx: Transaction) -> tuple[Volume, Snapshot]:
        row, snapshot = _revertible(tx, self._class, self._volume_id, self._snapshot_id)
        status = move("volume", row.id, row.status, Event.CHANGE)
        row = replace(row, status=status, error=None, updated_at=now_timestamp())
        tx.put_volume(row)
        return row, snapshot

    def _keep(self, row: Volume) -> dict[str, object]:
        return {
            "keep_id": new_id() if self._keeps else None,
            "keep_name": f"{row.name[:200]} before revert {now_timestamp()[:19]}Z",
        }


def _revertible(
    tx: Transaction, storage_class: StorageClass, volume_id: str, snapshot_id: str
) -> tuple[Volume, Snapshot]:
    """Both, if the one may be reverted to the other now."""
    row = living_volume(tx, volume_id)
    snapshot = readable_snapshot(tx, snapshot_id)
    if snapshot.volume_id != volume_id:
        raise PreconditionFailed(
            "resource_not_usable",
            f"snapshot {snapshot_id} was not taken of volume {volume_id}: "
            "create a volume from it instead",
        )
    if storage_class.is_thick and snapshot.held_by is not None:
        raise TransientState("snapshot", snapshot_id, "in_use")  # a merge would take its bytes
    if storage_class.is_thick and snapshot.attachments:
        raise PreconditionFailed(
            "resource_still_in_use",
            f"snapshot {snapshot_id} is attached to {snapshot.attachments[0].domain_name}, and "
            "reverting takes its bytes away for a while: detach it first, or revert to a snapshot "
            "taken at another time",
        )
    move("volume", volume_id, row.status, Event.CHANGE)
    if row.attachments or storage_class.driver.is_open(volume_id):
        raise InUse(volume_id, "revert")
    return row, snapshot
