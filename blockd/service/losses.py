"""Snapshots of thick classes whose store overflowed: the kernel gave their bytes up.

The volume and its other snapshots are untouched. What is left of the store is erased, and whoever
needs the snapshot's bytes just now is told why there are none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.intent import Intent
from blockd.domain.job import JobKind, Phase
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import CREATING, ERROR, Event, move
from blockd.domain.units import now_timestamp
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.erasures import add_erase, release
from blockd.service.jobs import Jobs
from blockd.service.operations import Operations

log = structlog.get_logger()

_RETRY_S = 5.0

#: Of a revert: its snapshot has no disk of its own then.
_WITHOUT_IT = (Phase.MERGING, Phase.AGAIN)


class Losses:
    """Hears of them from each thick class, for ever."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        jobs: Jobs,
        count: Callable[[str], None],
    ) -> None:
        """`count` is told the class of each lost snapshot."""
        self._catalog, self._classes = catalog, classes
        self._operations, self._jobs, self._count = operations, jobs, count

    async def run(self) -> None:
        """Until it is cancelled; the daemon owns this."""
        thick = [storage_class for storage_class in self._classes if storage_class.is_thick]
        await asyncio.gather(*(self._listen(storage_class) for storage_class in thick))

    async def _listen(self, storage_class: StorageClass) -> None:
        while True:
            try:
                async for disk, reason in storage_class.driver.losses():
                    await self._note(storage_class, disk, reason)
            except Exception:
                log.exception(
                    "losses are not heard of for a while", storage_class=storage_class.name
                )
            await asyncio.sleep(_RETRY_S)

    async def _note(self, storage_class: StorageClass, disk: str, reason: str) -> None:
        while True:
            try:
                await self._lose(storage_class, disk, reason)
            except Exception:
                log.exception("lost snapshot not noted, will be tried again", disk=disk)
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _lose(self, storage_class: StorageClass, disk: str, reason: str) -> None:
        # In a turn: between two steps of a snapshot that is being taken, or taken again.
        async with storage_class.driver.turn():
            lost = await self._catalog.write("snapshot lost", lambda tx: _lose(tx, disk, reason))
        if lost is None:
            log.warning("a snapshot's disk was lost before it was anybody's", disk=disk)
            return
        snapshot, intent, job_ids = lost
        log.error(
            "snapshot lost",
            snapshot_id=snapshot.id,
            volume_id=snapshot.volume_id,
            storage_class=storage_class.name,
            reason=reason,
        )
        self._count(storage_class.name)
        for job_id in job_ids:
            self._jobs.stop(job_id)
        self._operations.submit(intent)


def _lose(tx: Transaction, disk: str, reason: str) -> tuple[Snapshot, Intent, list[str]] | None:
    """Note it; the erasure of its disk, and the jobs that need its bytes.

    None: there is nothing to be lost. A disk that is still being made is made anew, but for the one
    that a revert keeps: what it pictures is being merged away.
    """
    snapshot_id = tx.disks.snapshot_on(disk)
    row = None if snapshot_id is None else tx.snapshot(snapshot_id)
    if row is None or row.error is not None or row.status is ERROR:
        return None
    if row.status is CREATING:
        if not any(job.args.get("keep_id") == row.id for job in tx.jobs.unfinished()):
            return None
        return *_broken(tx, row, Event.FAILED, reason), []
    jobs = tx.jobs.of_snapshot(row.id)
    if any(job.kind is JobKind.REVERT and job.phase in _WITHOUT_IT for job in jobs):
        return None  # merged, or about to be: it is taken again at the end
    # A revert that has taken it again needs it no more, and ends.
    needing = [job for job in jobs if job.phase is not Phase.SHOWING]
    for job in needing:
        tx.jobs.put(replace(job, args={**job.args, "lost": f"snapshot {row.id}: {reason}"}))
    return *_broken(tx, row, Event.LOST, reason), [job.id for job in needing]


def _broken(tx: Transaction, row: Snapshot, event: Event, reason: str) -> tuple[Snapshot, Intent]:
    status = move("snapshot", row.id, row.status, event)
    row = replace(row, status=status, error=reason, updated_at=now_timestamp())
    tx.put_snapshot(row)
    disks = [row.disk, *release(tx, [row])]
    # A guest that reads it has errors from now on, and its device until it is detached.
    return row, add_erase(tx, row.storage_class, disks, [row.id])
