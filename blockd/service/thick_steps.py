"""How the long verbs on volumes of thick classes are carried out, and given up.

Their bytes take as long as the disk takes, so most of a job happens outside the class's turn: only
making disks, fronts and snapshots is done within it. Every step may be done again after a crash
(ARCHITECTURE.md, "What survives a crash").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import (
    InUse,
    NotFound,
    RollbackFailed,
    StorageError,
    StorageOverdue,
    WrongState,
)
from blockd.domain.intent import Intent, disk_name
from blockd.domain.job import Job, JobKind, JobState, Phase
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import CREATING, UPDATING, Event, move
from blockd.domain.transfer import Progress
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.service.classes import StorageClasses
from blockd.service.erasures import add_erase
from blockd.service.job_ends import end_job, how_it_ended
from blockd.service.ports import StorageDriver
from blockd.service.steps import front_of


class ThickSteps:
    """The kinds of jobs on volumes, over catalog and storage classes."""

    def __init__(self, catalog: Catalog, classes: StorageClasses) -> None:
        self._catalog, self._classes = catalog, classes

    async def create(self, job: Job, progress: Progress) -> None:
        """A volume of zeros, or a copy of a snapshot; its front comes up when it is whole."""
        volume, source = await self._catalog.read(lambda tx: _rows(tx, job))
        driver = self._classes[volume.storage_class].driver
        if job.phase is Phase.BEGUN:
            await self._make(volume, source, progress)
            job = await self._advance(job, Phase.SHOWING)
        async with driver.turn():
            await driver.connect(front_of(volume))
            await self._end_well(job, "volume created", Event.CREATED, progress)

    async def _make(self, volume: Volume, source: Snapshot | None, progress: Progress) -> None:
        storage_class = self._classes[volume.storage_class]
        driver = storage_class.driver
        try:
            async with driver.turn():
                if await driver.disk_behind(volume.id) is not None:
                    await driver.disconnect(volume.id)  # of an attempt whose last commit failed
                if source is None:
                    await driver.create(volume.disk, volume.size_bytes)
                else:
                    await driver.clone(volume.disk, source.disk, volume.size_bytes)
        finally:
            storage_class.promised.pop(volume.id, None)
        await driver.complete(
            volume.disk,
            volume.size_bytes,
            old_bytes=0,
            source=None if source is None else source.disk,
            source_bytes=0 if source is None else source.size_bytes,
            progress=progress,
        )

    async def grow(self, job: Job, progress: Progress) -> None:
        """A larger disk, zeros in its new part, and then a larger front."""
        volume, _ = await self._catalog.read(lambda tx: _rows(tx, job))
        storage_class = self._classes[volume.storage_class]
        driver = storage_class.driver
        grown = replace(volume, size_bytes=int(str(job.args["size_bytes"])))
        if job.phase is Phase.BEGUN:
            try:
                async with driver.turn():
                    await driver.grow(volume.disk, grown.size_bytes)
            finally:
                storage_class.promised.pop(job.id, None)
            await driver.complete(
                volume.disk,
                grown.size_bytes,
                old_bytes=volume.size_bytes,
                source=None,
                progress=progress,
            )
            # Once the front shows the new part it may be written to: it is never zeroed again.
            job = await self._advance(job, Phase.SHOWING)
        async with driver.turn():
            await driver.connect(front_of(grown))
            await self._end_well(
                job,
                "volume changed",
                Event.CHANGED,
                progress,
                lambda row: replace(row, size_bytes=grown.size_bytes),
            )

    # revert

    async def revert(self, job: Job, progress: Progress) -> None:
        """Merge the snapshot into the volume's disk, and take it again under its own name.

        The front is down from the first step to the last. Until the merge has begun the volume
        has its old bytes, from then on the snapshot's.
        """
        volume, snapshot = await self._catalog.read(lambda tx: _rows(tx, job))
        if snapshot is None:
            raise NotFound("snapshot", job.snapshot_id or "")
        storage_class = self._classes[volume.storage_class]
        driver = storage_class.driver
        if job.phase is Phase.BEGUN:
            try:
                async with driver.turn():
                    job = await self._make_ready(job, volume, snapshot, driver)
                    job = await self._begin_merge(job, volume, snapshot, driver)
            finally:
                storage_class.promised.pop(job.id, None)
        elif job.phase is Phase.MERGING:
            async with driver.turn():
                job = await self._begin_merge(job, volume, snapshot, driver)
        if job.phase is Phase.MERGING:
            await driver.merged(volume.disk, progress)
            if snapshot.size_bytes < volume.size_bytes:  # it has grown since: zeros in that part
                await driver.complete(
                    volume.disk,
                    volume.size_bytes,
                    old_bytes=snapshot.size_bytes,
                    source=None,
                    progress=Progress(),
                )
        async with driver.turn():  # a single one: nobody else may take the room of the store
            if job.phase is Phase.MERGING:
                await driver.end_merge(volume.disk, snapshot.disk)
                job = await self._advance(job, Phase.AGAIN)
            if job.phase is Phase.AGAIN:
                await driver.snapshot(snapshot.disk, volume.disk, None)
                # Once the front is up the volume may be written to: it is no more the snapshot.
                job = await self._advance(job, Phase.SHOWING)
            await driver.connect(front_of(volume))
            await self._end_well(
                job,
                "volume reverted",
                Event.CHANGED,
                progress,
                also=_made_available(keep_id_of(job)),
            )

    async def _make_ready(
        self, job: Job, volume: Volume, snapshot: Snapshot, driver: StorageDriver
    ) -> Job:
        try:
            await driver.disconnect(volume.id)
        except InUse as err:
            raise StorageError(str(err)) from err
        keep_id = keep_id_of(job)
        if keep_id is not None:
            await driver.snapshot(disk_name(keep_id), volume.disk, None)
        await driver.reserve_for_revert(volume.disk, snapshot.disk)
        return await self._advance(job, Phase.MERGING, _keeping(job, volume))

    async def _begin_merge(
        self, job: Job, volume: Volume, snapshot: Snapshot, driver: StorageDriver
    ) -> Job:
        """From the commit before this there is no way back, unless the merge has not begun."""
        try:
            await driver.begin_merge(volume.disk, snapshot.disk)
        except StorageOverdue:
            raise
        except StorageError:
            if snapshot.disk in await driver.disks():
                await self._advance(job, Phase.BEGUN, _not_keeping(job))
            raise
        return job

    async def _advance(
        self, job: Job, phase: Phase, also: Callable[[Transaction], None] | None = None
    ) -> Job:
        def advance(tx: Transaction) -> Job:
            row = tx.jobs.get(job.id)
            if row is None:
                raise NotFound("job", job.id)
            if row.phase is Phase.BEGUN and row.is_stopped:
                raise WrongState("job", job.id, "cancelled", phase)
            row = replace(row, phase=phase)
            tx.jobs.put(row)
            if also is not None:
                also(tx)
            return row

        job = await self._catalog.write(f"{job.kind} {phase}", advance)
        if phase in (Phase.MERGING, Phase.SHOWING):
            # What comes now cannot be done twice: a copy that does not know it would do it again.
            await self._catalog.copied()
        return job

    # the end

    async def _end_well(
        self,
        job: Job,
        label: str,
        event: Event,
        progress: Progress,
        edit: Callable[[Volume], Volume] | None = None,
        also: Callable[[Transaction], None] | None = None,
    ) -> None:
        """The last commit of a job that came about, within the turn of its front."""

        def end(tx: Transaction) -> None:
            row = tx.volume(job.volume_id or "")
            if row is not None:
                status = move("volume", row.id, row.status, event)
                row = replace(row, status=status, error=None, updated_at=now_timestamp())
                tx.put_volume(edit(row) if edit is not None else row)
            if also is not None:
                also(tx)
            end_job(tx, job.id, JobState.SUCCEEDED, progress)

        await self._catalog.write(label, end)

    async def fail(
        self, job: Job, failure: BaseException | None, progress: Progress
    ) -> list[Intent]:
        """Settle a job that does not come about, and answer what must be done to leave nothing.

        Raises:
            BlockdError: a merge has begun, or a new part is about to be shown: it can only go
                forward, and must be tried again.
        """
        volume = await self._catalog.read(lambda tx: tx.volume(job.volume_id or ""))
        if volume is None:
            return await self._catalog.write("job failed", _failed(job, failure, progress))
        storage_class = self._classes[volume.storage_class]
        # What is new as a whole can be given up to the last: nobody was told that it is there.
        if job.phase is not Phase.BEGUN and job.kind not in (JobKind.CREATE, JobKind.CLONE):
            raise failure or StorageError(f"volume {volume.id}: {job.kind} is {job.phase}")
        if job.kind is not JobKind.REVERT or volume.status is not UPDATING:
            return await self._catalog.write("job failed", _failed(job, failure, progress))
        async with storage_class.driver.turn():
            try:
                await storage_class.driver.connect(front_of(volume))
            except StorageError as err:
                raise RollbackFailed(failure or err, err) from err
            return await self._catalog.write("job failed", _failed(job, failure, progress))


def _rows(tx: Transaction, job: Job) -> tuple[Volume, Snapshot | None]:
    """What the job is about, as it stands now. Raises NotFound."""
    volume = tx.volume(job.volume_id or "")
    if volume is None:
        raise NotFound("volume", job.volume_id or "")
    snapshot = None if job.snapshot_id is None else tx.snapshot(job.snapshot_id)
    if job.snapshot_id is not None and snapshot is None:
        raise NotFound("snapshot", job.snapshot_id)
    return volume, snapshot


def _failed(
    job: Job, failure: BaseException | None, progress: Progress
) -> Callable[[Transaction], list[Intent]]:
    def fail(tx: Transaction) -> list[Intent]:
        row = tx.jobs.get(job.id)
        if row is None or row.phase is Phase.ENDED:
            return []
        state, error = how_it_ended(row, failure)
        end_job(tx, job.id, state, progress, error=error)
        volume = tx.volume(job.volume_id or "")
        if volume is None or volume.status not in (CREATING, UPDATING):
            return []
        status = move("volume", volume.id, volume.status, Event.FAILED)
        tx.put_volume(replace(volume, status=status, error=error, updated_at=now_timestamp()))
        if volume.status is CREATING:
            return [add_erase(tx, volume.storage_class, [volume.disk], [volume.id])]
        keep_id = keep_id_of(job)
        if keep_id is not None:
            return [add_erase(tx, volume.storage_class, [disk_name(keep_id)], [])]
        return []

    return fail


# the snapshot of what a volume held before it is reverted


def keep_id_of(job: Job) -> str | None:
    """The id of the snapshot that a revert keeps, if it keeps one."""
    keep_id = job.args.get("keep_id")
    return None if keep_id is None else str(keep_id)


def _keeping(job: Job, volume: Volume) -> Callable[[Transaction], None]:
    def keep(tx: Transaction) -> None:
        keep_id = keep_id_of(job)
        if keep_id is None:
            return
        now = now_timestamp()
        tx.add_snapshot(
            Snapshot(
                id=keep_id,
                project_id=volume.project_id,
                name=str(job.args["keep_name"]),
                size_bytes=volume.size_bytes,
                storage_class=volume.storage_class,
                status=CREATING,
                public=False,
                tags=(),
                volume_id=volume.id,
                parent=None,
                disk=disk_name(keep_id),
                created_at=now,
                updated_at=now,
                origin_disk=volume.disk,
            )
        )

    return keep


def _not_keeping(job: Job) -> Callable[[Transaction], None]:
    def forget(tx: Transaction) -> None:
        keep_id = keep_id_of(job)
        if keep_id is not None:
            tx.remove_snapshot(keep_id)

    return forget


def _made_available(snapshot_id: str | None) -> Callable[[Transaction], None]:
    def available(tx: Transaction) -> None:
        row = None if snapshot_id is None else tx.snapshot(snapshot_id)
        if row is not None and row.status is CREATING:  # not lost meanwhile
            status = move("snapshot", row.id, row.status, Event.CREATED)
            tx.put_snapshot(replace(row, status=status, updated_at=now_timestamp()))

    return available
