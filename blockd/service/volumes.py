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
)
from blockd.domain.intent import Intent, Verb, disk_name, new_id
from blockd.domain.listing import Page, VolumeFilter
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import (
    AVAILABLE,
    CREATING,
    DELETED,
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
from blockd.service.operations import Operations
from blockd.service.pages import Pages
from blockd.service.ports import StorageDriver
from blockd.service.snapshots import readable_snapshot
from blockd.service.steps import PREPARE, front_of
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
    ) -> None:
        self._catalog, self._classes = catalog, classes
        self._operations, self._trash, self._tenancy = operations, trash, tenancy
        self._pages: Pages[Volume] = Pages(catalog, classes.is_open)

    async def create(self, new: NewVolume, remember: Remember[Volume] | None = None) -> Volume:
        """Begin to make a volume, empty or from a snapshot; the answer is `creating`.

        Raises:
            NotFound: no such snapshot.
            PermissionDenied: no such project.
            PreconditionFailed: the snapshot is larger than the size asked for, or in error.
            TransientState: the snapshot is not ready yet.
            InvalidArguments: another class than the snapshot's, or an unknown one.
            NoRoom: the pool is too full, or promised too often.
        """
        project_id = self._tenancy.project(new.project_id, "volume")
        storage_class = await self._class_for(new)
        pool = await self._trash.pool_with_room(storage_class, "volume")
        volume_id = new_id()
        now = now_timestamp()

        def begin(tx: Transaction) -> tuple[Volume, Intent]:
            source, size_bytes = None, new.size_bytes
            if new.snapshot_id is not None:
                source = readable_snapshot(tx, new.snapshot_id)
                size_bytes = _clone_size(source, new.size_bytes)
            volume = Volume(
                id=volume_id,
                project_id=project_id,
                name=new.name if new.name is not None else f"vol-{volume_id[:8]}",
                size_bytes=size_bytes or 0,
                perf_iops=new.perf_iops,
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
            args: dict[str, object] = {"from_disk": None if source is None else source.disk}
            intent = tx.add_intent(Verb.CREATE_VOLUME, volume_id, storage_class.name, "", args)
            remember_answer(tx, volume, remember)
            return volume, intent

        volume, intent = await self._catalog.write("volume creating", begin)
        self._operations.submit(intent)
        return volume

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
                [_shown(row, _front(row) in open_fronts) for row in volumes], total
            ),
        )

    async def change(self, volume_id: str, change: VolumeChange) -> Volume:
        """Rename, tag, grow, or set the performance of a volume.

        Name and tags change at once. A new size or performance is answered with status
        `updating` and the old values, and comes into force a moment later.

        Raises:
            InvalidArguments: a smaller size, or a change of performance in a passing state.
            TransientState: another change is under way.
            NoRoom: the pool is promised too often.
        """
        before = await self.get(volume_id)
        storage_class = self._classes[before.storage_class]
        grows = change.size_bytes is not None and change.size_bytes > before.size_bytes
        pool = await self._trash.pool_with_room(storage_class, "volume") if grows else None

        def begin(tx: Transaction) -> tuple[Volume, Intent | None]:
            volume = _living(tx, volume_id)
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
            intent = None
            if size_bytes is not None or perf_iops is not None:
                status = move("volume", volume_id, volume.status, Event.CHANGE)
                volume = replace(volume, status=status, error=None)
                if pool is not None and size_bytes is not None:
                    storage_class.check_overcommit(tx, pool, size_bytes - volume.size_bytes)
                args: dict[str, object] = {"size_bytes": size_bytes, "perf_iops": perf_iops}
                intent = tx.add_intent(
                    Verb.CHANGE_VOLUME, volume_id, volume.storage_class, "", args
                )
            tx.put_volume(volume)
            return volume, intent

        volume, intent = await self._catalog.write("volume changing", begin)
        if intent is not None:
            self._operations.submit(intent)
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
        driver = self._classes[volume.storage_class].driver
        await driver.disconnect(volume_id)

        def throw(tx: Transaction) -> Intent | None:
            row = _living(tx, volume_id)
            status = move("volume", volume_id, row.status, Event.DELETE)
            now = now_timestamp()
            # From here on `error` means that there are no bytes to bring back.
            error = row.error if row.status is not AVAILABLE else None
            row = replace(row, status=status, deleted_at=now, updated_at=now, error=error)
            return self._trash.throw(tx, row)

        try:
            erasure = await self._catalog.write("volume deleted", throw)
        except BaseException:
            await self._restore_front(volume_id, driver)
            raise
        self._trash.thrown(erasure)

    async def undelete(self, volume_id: str, remember: Remember[Volume] | None = None) -> Volume:
        """Bring a volume back from the trash, whole.

        Raises:
            NotFound: there is none, or it is erased.
            PreconditionFailed: it is not deleted.
        """
        volume = await self._catalog.read(lambda tx: tx.volume(volume_id))
        if volume is None:
            raise NotFound("volume", volume_id)
        driver = self._classes[volume.storage_class].driver

        def restore(tx: Transaction) -> Volume:
            row = _deleted(tx, volume_id)
            event = Event.UNDELETE if row.error is None else Event.UNDELETE_BROKEN
            status = move("volume", volume_id, row.status, event)
            row = replace(row, status=status, deleted_at=None, updated_at=now_timestamp())
            tx.put_volume(row)
            remember_answer(tx, row, remember)
            return row

        async with driver.turn():  # behind an erasure of it that has begun, which wins
            row = await self._catalog.read(lambda tx: _deleted(tx, volume_id))
            if row.error is None:
                await driver.connect(front_of(row))
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
            row = await self._catalog.read(lambda tx: tx.volume(volume_id))
            if row is not None and row.status in (AVAILABLE, UPDATING):
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
            NoRoom: the pool is too full.
        """
        volume = await self.get(volume_id)
        storage_class = self._classes[volume.storage_class]
        await self._trash.pool_with_room(storage_class, "snapshot")
        revert_id = new_id()

        def begin(tx: Transaction) -> tuple[Volume, Intent]:
            row = _living(tx, volume_id)
            snapshot = readable_snapshot(tx, snapshot_id)
            if snapshot.volume_id != volume_id:
                raise PreconditionFailed(
                    "resource_not_usable",
                    f"snapshot {snapshot_id} was not taken of volume {volume_id}: "
                    "create a volume from it instead",
                )
            status = move("volume", volume_id, row.status, Event.CHANGE)
            if storage_class.driver.is_open(volume_id):
                raise InUse(volume_id, "revert")
            row = replace(row, status=status, error=None, updated_at=now_timestamp())
            tx.put_volume(row)
            intent = tx.add_intent(
                Verb.REVERT_VOLUME,
                volume_id,
                row.storage_class,
                PREPARE,
                {
                    "from_disk": snapshot.disk,
                    "old_disk": row.disk,
                    "new_disk": disk_name(revert_id),
                    "keep_id": new_id() if keep_previous else None,
                    "keep_name": f"{row.name[:200]} before revert {now_timestamp()[:19]}Z",
                },
            )
            remember_answer(tx, row, remember)
            return row, intent

        volume, intent = await self._catalog.write("volume reverting", begin)
        self._operations.submit(intent)
        return volume

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

    async def _class_for(self, new: NewVolume) -> StorageClass:
        """The class asked for; a snapshot's own when it is made from one."""
        if new.snapshot_id is None:
            return self._classes.asked(new.storage_class)
        snapshot_id = new.snapshot_id
        source = await self._catalog.read(lambda tx: readable_snapshot(tx, snapshot_id))
        if new.storage_class not in (None, source.storage_class):
            raise InvalidArguments.one(
                "class", "constraint", f"class must be the snapshot's: {source.storage_class}"
            )
        return self._classes[source.storage_class]

    def _seen(self, volume: Volume) -> Volume:
        return _shown(volume, volume.status is AVAILABLE and self._classes.is_open(*_front(volume)))


def _front(volume: Volume) -> tuple[str, str]:
    return volume.storage_class, volume.id


def _shown(volume: Volume, is_open: bool) -> Volume:
    return replace(volume, status=seen_status(volume.status, is_open=True)) if is_open else volume


def _living(tx: Transaction, volume_id: str) -> Volume:
    volume = tx.volume(volume_id)
    if volume is None or volume.status is DELETED:
        raise NotFound("volume", volume_id)
    return volume


def _deleted(tx: Transaction, volume_id: str) -> Volume:
    volume = tx.volume(volume_id)
    if volume is None:
        raise NotFound("volume", volume_id)
    if volume.status is not DELETED:
        raise PreconditionFailed("resource_not_usable", f"volume {volume_id} is not deleted")
    return volume


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
