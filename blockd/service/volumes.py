"""The verbs on volumes: what is allowed, what is journalled, what is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import (
    InUse,
    InvalidArguments,
    NotFound,
    PreconditionFailed,
    StorageError,
)
from blockd.domain.intent import Intent, Verb, disk_name, new_id
from blockd.domain.job import Job, JobKind
from blockd.domain.listing import Page, VolumeFilter
from blockd.domain.pool import PoolUse
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import (
    AVAILABLE,
    CREATING,
    DELETED,
    ERROR,
    IN_USE,
    UPDATING,
    Event,
    move,
    seen_status,
)
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Device, NewVolume, Volume, VolumeChange
from blockd.service.answers import Remember, remember_answer
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.host import Tenancy
from blockd.service.jobs import Jobs, volume_job
from blockd.service.operations import Operations
from blockd.service.pages import Pages
from blockd.service.ports import StorageDriver
from blockd.service.reverts import Reverts
from blockd.service.rows import deleted_volume, living_volume, readable_snapshot
from blockd.service.steps import front_of
from blockd.service.trash import Trash


class Volumes:
    """All methods raise `NotFound` for a volume that does not exist or is deleted."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        trash: Trash,
        tenancy: Tenancy,
        jobs: Jobs,
    ) -> None:
        self._catalog, self._classes = catalog, classes
        self._operations, self._trash, self._tenancy = operations, trash, tenancy
        self._jobs = jobs
        self._reverts = Reverts(catalog, classes, operations, trash, jobs)
        self._pages: Pages[Volume] = Pages(catalog, classes.is_open, classes.missing)

    async def create(self, new: NewVolume, remember: Remember[Volume] | None = None) -> Volume:
        """Begin to make a volume, empty or from a snapshot; the answer is `creating`.

        Raises:
            NotFound: no such snapshot.
            PermissionDenied: no such project.
            PreconditionFailed: the snapshot is larger than the size asked for, or in error.
            TransientState: the snapshot is not ready yet.
            InvalidArguments: another class than the snapshot's, or an unknown one.
            NoRoom: the pool is too full, or promised too often; thick: too little is free.
        """
        project_id = self._tenancy.project(new.project_id, "volume")
        storage_class, likely_bytes = await self._class_for(new)
        needs_bytes = storage_class.driver.volume_bytes(likely_bytes)
        volume_id = new_id()
        now = now_timestamp()

        def begin(tx: Transaction, pool: PoolUse) -> tuple[Volume, Intent | Job]:
            source, size_bytes = None, new.size_bytes
            if new.snapshot_id is not None:
                source = readable_snapshot(tx, new.snapshot_id)
                size_bytes = _clone_size(source, new.size_bytes)
            volume = Volume(
                id=volume_id,
                project_id=project_id,
                name=new.name if new.name is not None else f"vol-{volume_id[:8]}",
                size_bytes=size_bytes or 0,
                perf_iops=None if storage_class.is_thick else new.perf_iops,
                storage_class=storage_class.name,
                status=CREATING,
                tags=new.tags,
                parent_snapshot_id=new.snapshot_id,
                disk=disk_name(volume_id),
                created_at=now,
                updated_at=now,
            )
            storage_class.check_overcommit(tx, pool, volume.size_bytes)
            tx.add_volume(volume)
            remember_answer(tx, volume, remember)
            return volume, _journal_create(tx, storage_class, volume, source)

        async with self._trash.room(storage_class, "volume", volume_id, needs_bytes) as pool:
            volume, work = await self._catalog.write("volume creating", lambda tx: begin(tx, pool))
        self._submit(work)
        return volume

    def _submit(self, work: Intent | Job) -> None:
        """Begin what was journalled."""
        if isinstance(work, Job):
            self._jobs.submit(work.id)
        else:
            self._operations.submit(work)

    async def get(self, volume_id: str, *, include_deleted: bool = False) -> Volume:
        """The volume as it is now; its status is `in_use` while its device is open."""
        volume = await self._catalog.read(lambda tx: tx.volume(volume_id))
        if volume is None or (volume.status is DELETED and not include_deleted):
            raise NotFound("volume", volume_id)
        return self._seen(volume)

    async def page(
        self, wanted: VolumeFilter, page: Page, render: Callable[[Sequence[Volume], int], str]
    ) -> str:
        """One page of the volumes that match, as `render` writes it and how many match in all.

        `render` must write the same for the same volumes: its text is used again (`pages.py`).
        """
        if wanted.organization_id not in (None, self._tenancy.organization_id):
            return render([], 0)
        return await self._pages.text(
            (wanted, page, render),
            lambda tx: tx.page_of_volumes(wanted, page),
            lambda volumes: {_front(row) for row in volumes if row.status is AVAILABLE},
            lambda volumes, total, open_fronts: render(
                [self._shown(row, _front(row) in open_fronts) for row in volumes], total
            ),
        )

    async def change(self, volume_id: str, change: VolumeChange) -> Volume:
        """Rename, tag, grow, or set the performance of a volume.

        Name and tags change at once. A new size or performance is answered with status
        `updating` and the old values, and comes into force a moment later.

        Raises:
            InvalidArguments: a smaller size; a change of performance in a passing state, or in a
                thick class.
            TransientState: another change is under way.
            NoRoom: the pool is promised too often; thick: too little is free.
        """
        before = await self.get(volume_id)
        storage_class = self._classes[before.storage_class]
        if storage_class.is_thick and change.perf_iops is not None:
            help_text = f"volumes of class {storage_class.name} have no perf_iops"
            raise InvalidArguments.one("perf_iops", "constraint", help_text)
        job_id = new_id()

        def begin(tx: Transaction, pool: PoolUse | None) -> tuple[Volume, Intent | Job | None]:
            volume = living_volume(tx, volume_id)
            if change.size_bytes is not None or change.perf_iops is not None:
                self._classes.check_there(volume)
            size_bytes = _larger_size(volume, change.size_bytes)
            perf_iops = None if change.perf_iops == volume.perf_iops else change.perf_iops
            if perf_iops is not None and volume.status is not AVAILABLE:
                raise InvalidArguments.one(
                    "perf_iops", "constraint", "can't update perf_iops when volume is not available"
                )
            volume = replace(
                volume,
                name=volume.name if change.name is None else change.name,
                tags=volume.tags if change.tags is None else change.tags,
                updated_at=now_timestamp(),
            )
            work: Intent | Job | None = None
            if size_bytes is not None or perf_iops is not None:
                status = move("volume", volume_id, volume.status, Event.CHANGE)
                volume = replace(volume, status=status, error=None)
                if pool is not None and size_bytes is not None:
                    storage_class.check_overcommit(tx, pool, size_bytes - volume.size_bytes)
                args: dict[str, object] = {"size_bytes": size_bytes, "perf_iops": perf_iops}
                if storage_class.is_thick:
                    work = volume_job(job_id, JobKind.GROW, volume, None, args)
                    tx.jobs.add(work)
                else:
                    verb = Verb.CHANGE_VOLUME
                    work = tx.add_intent(verb, volume_id, volume.storage_class, "", args)
            tx.put_volume(volume)
            return volume, work

        if change.size_bytes is not None and change.size_bytes > before.size_bytes:
            new, old = map(
                storage_class.driver.volume_bytes, (change.size_bytes, before.size_bytes)
            )
            async with self._trash.room(storage_class, "volume", job_id, new - old) as pool:
                volume, work = await self._catalog.write(
                    "volume changing", lambda tx: begin(tx, pool)
                )
        else:
            volume, work = await self._catalog.write("volume changing", lambda tx: begin(tx, None))
        if work is not None:
            self._submit(work)
        return self._seen(volume)

    async def delete(self, volume_id: str) -> None:
        """Put the volume into the trash; its snapshots and clones stay.

        The front is removed first: the kernel refuses while anybody holds it open. It is no disk
        and needs no journal: at start the fronts are made to be what the catalog says.

        Raises:
            InUse: its device is open.
            TransientState: it is being made or changed.
        """
        volume = await self.get(volume_id)
        if volume.status is IN_USE:
            raise InUse(volume_id, "delete")
        move("volume", volume_id, volume.status, Event.DELETE)
        storage_class = self._classes[volume.storage_class]
        driver = storage_class.driver

        def throw(tx: Transaction) -> Intent | None:
            row = living_volume(tx, volume_id)
            if row.attachments:  # since it was seen above
                raise InUse(volume_id, "delete")
            status = move("volume", volume_id, row.status, Event.DELETE)
            now = now_timestamp()
            # From here on `error` means that there are no bytes to bring back.
            error = row.error if row.status is not AVAILABLE else None
            row = replace(row, status=status, deleted_at=now, updated_at=now, error=error)
            return self._trash.throw(tx, row)

        storage_class.deleting.add(volume_id)
        try:
            await driver.disconnect(volume_id)
            try:
                erasure = await self._catalog.write("volume deleted", throw)
            except BaseException:
                await self._restore_front(volume_id, driver)
                raise
        finally:
            storage_class.deleting.discard(volume_id)
        self._trash.thrown(erasure)

    async def undelete(self, volume_id: str, remember: Remember[Volume] | None = None) -> Volume:
        """Bring a volume back from the trash, whole.

        Raises:
            NotFound: there is none, or it is erased.
            PreconditionFailed: it is not deleted, or its disk cannot be had now.
            StorageBusy: its turn does not come.
        """
        volume = await self._catalog.read(lambda tx: tx.volume(volume_id))
        if volume is None:
            raise NotFound("volume", volume_id)
        storage_class = self._classes[volume.storage_class]
        driver = storage_class.driver

        def restore(tx: Transaction) -> Volume:
            row = deleted_volume(tx, volume_id)
            event = Event.UNDELETE if row.error is None else Event.UNDELETE_BROKEN
            status = move("volume", volume_id, row.status, event)
            row = replace(row, status=status, deleted_at=None, updated_at=now_timestamp())
            tx.put_volume(row)
            remember_answer(tx, row, remember)
            return row

        async with storage_class.turn_soon():  # behind an erasure of it that has begun, which wins
            row = await self._catalog.read(lambda tx: deleted_volume(tx, volume_id))
            self._classes.check_there(row)
            if row.error is None:
                try:
                    await driver.connect(front_of(row))
                except StorageError as err:
                    raise PreconditionFailed(
                        "resource_not_usable",
                        f"volume {volume_id} stays in the trash, as its disk cannot be had: {err}",
                    ) from err
            try:
                return await self._catalog.write("volume undeleted", restore)
            except BaseException:
                await driver.disconnect(volume_id)
                raise

    async def _restore_front(self, volume_id: str, driver: StorageDriver) -> None:
        """Make the front be what the catalog says, after a delete that was not to be.

        In a turn, so behind whatever else was under way with this volume.
        """
        async with driver.turn():
            row, reverting = await self._catalog.read(
                lambda tx: (tx.volume(volume_id), tx.disks.is_reverting(volume_id))
            )
            if row is not None and row.status in (AVAILABLE, UPDATING) and not reverting:
                await driver.connect(front_of(row))

    async def revert(
        self,
        volume_id: str,
        snapshot_id: str,
        keep_previous: bool,
        remember: Remember[Volume] | None = None,
    ) -> Volume:
        """Begin to give the volume the snapshot's bytes again; the answer is `updating`.

        With `keep_previous`, what it holds now becomes a snapshot first.

        Raises:
            NotFound: no such snapshot.
            InUse: the volume's device is open.
            PreconditionFailed: the snapshot is of another volume, or in error.
            TransientState: either is not at rest.
            NoRoom: the pool is too full; thick: too little is free for what the merge overwrites.
        """
        return await self._reverts.begin(volume_id, snapshot_id, keep_previous, remember)

    async def device(self, volume_id: str) -> Device:
        """Where the volume's bytes are.

        Raises:
            TransientState: it is still being made.
            PreconditionFailed: it is in error and has none.
        """
        volume = await self.get(volume_id)
        if volume.status is CREATING:
            move("volume", volume_id, volume.status, Event.CHANGE)
        if volume.error is not None and volume.status not in (AVAILABLE, IN_USE):
            raise PreconditionFailed("resource_not_usable", f"volume {volume_id}: {volume.error}")
        return self._classes[volume.storage_class].driver.device(front_of(volume))

    async def _class_for(self, new: NewVolume) -> tuple[StorageClass, int]:
        """The class asked for, a snapshot's own when it is made from one; and the size."""
        if new.snapshot_id is None:
            return self._classes.asked(new.storage_class), new.size_bytes or 0
        snapshot_id = new.snapshot_id
        source = await self._catalog.read(lambda tx: readable_snapshot(tx, snapshot_id))
        self._classes.check_there(source)
        if new.storage_class not in (None, source.storage_class):
            raise InvalidArguments.one(
                "class", "constraint", f"class must be the snapshot's: {source.storage_class}"
            )
        return self._classes[source.storage_class], _clone_size(source, new.size_bytes)

    def _seen(self, volume: Volume) -> Volume:
        is_open = volume.status is AVAILABLE and self._classes.is_open(*_front(volume))
        return self._shown(volume, is_open)

    def _shown(self, volume: Volume, is_open: bool) -> Volume:
        if volume.status is AVAILABLE and (why := self._classes.why_missing(volume)) is not None:
            return replace(volume, status=ERROR, error=why)
        if is_open or volume.attachments:
            return replace(volume, status=seen_status(volume.status, is_open=True))
        return volume


def _front(volume: Volume) -> tuple[str, str]:
    return volume.storage_class, volume.id


def _journal_create(
    tx: Transaction, storage_class: StorageClass, volume: Volume, source: Snapshot | None
) -> Intent | Job:
    args: dict[str, object] = {"from_disk": None if source is None else source.disk}
    if not storage_class.is_thick:
        return tx.add_intent(Verb.CREATE_VOLUME, volume.id, storage_class.name, "", args)
    kind = JobKind.CREATE if source is None else JobKind.CLONE
    job = volume_job(new_id(), kind, volume, None if source is None else source.id, {})
    tx.jobs.add(job)
    return job


def _clone_size(source: Snapshot, asked_bytes: int | None) -> int:
    if asked_bytes is not None and asked_bytes < source.size_bytes:
        raise PreconditionFailed(
            "resource_not_usable",
            "size, when provided, must be equal to or larger than the size of the source "
            f"snapshot. Here the requested volume size is '{asked_bytes}' whereas snapshot size "
            f"is '{source.size_bytes}'",
        )
    return asked_bytes or source.size_bytes


def _larger_size(volume: Volume, asked_bytes: int | None) -> int | None:
    if asked_bytes is None or asked_bytes == volume.size_bytes:
        return None
    if asked_bytes < volume.size_bytes:
        raise InvalidArguments.one(
            "size",
            "constraint",
            f"size must be greater or equal to {volume.size_bytes}: a volume cannot shrink",
        )
    return asked_bytes
