"""The verbs on snapshots: what is allowed, what is journalled, what is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import NotFound, PreconditionFailed
from blockd.domain.intent import Intent, Verb, disk_name, new_id
from blockd.domain.listing import Page, SnapshotFilter
from blockd.domain.snapshot import (
    NewSnapshot,
    ParentVolume,
    Quiesce,
    Snapshot,
    SnapshotChange,
)
from blockd.domain.states import (
    AVAILABLE,
    CREATING,
    DELETED,
    ERROR,
    EXPORTING,
    Event,
    move,
    seen_status,
)
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.service.answers import Remember, remember_answer
from blockd.service.classes import StorageClasses
from blockd.service.freezes import Freezes
from blockd.service.host import Tenancy
from blockd.service.operations import Operations
from blockd.service.pages import Pages
from blockd.service.rows import living_snapshot, volume_at_rest
from blockd.service.trash import Trash


class Snapshots:
    """All methods raise `NotFound` for a snapshot that does not exist or is deleted."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        trash: Trash,
        tenancy: Tenancy,
        freezes: Freezes,
    ) -> None:
        self._freezes = freezes
        self._catalog, self._classes = catalog, classes
        self._operations, self._trash, self._tenancy = operations, trash, tenancy
        self._pages: Pages[Snapshot] = Pages(catalog, classes.is_open, classes.missing)

    async def create(
        self, new: NewSnapshot, remember: Remember[Snapshot] | None = None
    ) -> Snapshot:
        """Begin to take a snapshot; the answer is `creating`.

        The instant it holds lies between this request and its becoming `available`, also when
        the daemon dies in between and the next one finishes it.

        Raises:
            NotFound: no such volume.
            PermissionDenied: no such project.
            TransientState: the volume is being made or changed.
            PreconditionFailed: the volume is in error.
            NoRoom: the pool is too full, or a thick volume has as many as are allowed.
            GuestRefused, HypervisorUnreachable: the guest is required to be quiet, and cannot be.
        """
        project_id = self._tenancy.project(new.project_id, "snapshot")
        origin = await self._catalog.read(lambda tx: volume_at_rest(tx, new.volume_id))
        self._classes.check_there(origin)
        storage_class = self._classes[origin.storage_class]
        if new.quiesce is Quiesce.REQUIRE:
            await self._freezes.check([new.volume_id])
        await self._trash.check_way(storage_class, origin)
        needs_bytes = storage_class.driver.snapshot_bytes(origin.size_bytes)
        snapshot_id = new_id()

        def begin(tx: Transaction) -> tuple[Snapshot, Intent, Intent | None]:
            volume = volume_at_rest(tx, new.volume_id)
            erasure = self._trash.make_way(tx, storage_class, volume)
            is_thick = storage_class.is_thick
            snapshot = snapshot_of(volume, new, snapshot_id, project_id, is_thick=is_thick)
            tx.add_snapshot(snapshot)
            args: dict[str, object] = {"from_disk": volume.disk, "quiesce": new.quiesce}
            intent = tx.add_intent(
                Verb.CREATE_SNAPSHOT, snapshot_id, volume.storage_class, "", args
            )
            snapshot = self.seen(snapshot)
            remember_answer(tx, snapshot, remember)
            return snapshot, intent, erasure

        async with self._trash.room(storage_class, "snapshot", snapshot_id, needs_bytes):
            snapshot, intent, erasure = await self._catalog.write("snapshot creating", begin)
        self._trash.way_made(erasure)
        self._operations.submit(intent)
        return snapshot

    async def get(self, snapshot_id: str, *, include_deleted: bool = False) -> Snapshot:
        """The snapshot as it is now, its parent's name and status as they are now."""
        snapshot = await self._catalog.read(lambda tx: tx.snapshot(snapshot_id))
        if snapshot is None or (snapshot.status is DELETED and not include_deleted):
            raise NotFound("snapshot", snapshot_id)
        return self.seen(snapshot)

    async def page(
        self, wanted: SnapshotFilter, page: Page, render: Callable[[Sequence[Snapshot], int], str]
    ) -> str:
        """One page of the snapshots that match, as `render` writes it and how many match in all.

        `render` must write the same for the same snapshots: its text is used again (`pages.py`).
        """
        if wanted.organization_id not in (None, self._tenancy.organization_id):
            return render([], 0)
        return await self._pages.text(
            (wanted, page, render),
            lambda tx: tx.page_of_snapshots(wanted, page),
            lambda snapshots: {front for row in snapshots if (front := _parent_front(row))},
            lambda snapshots, total, open_fronts: render(
                [self._shown(row, _parent_front(row) in open_fronts) for row in snapshots], total
            ),
        )

    async def change(self, snapshot_id: str, change: SnapshotChange) -> Snapshot:
        """Rename, tag, publish or unpublish; takes effect at once, in any status."""

        def edit(tx: Transaction) -> Snapshot:
            row = living_snapshot(tx, snapshot_id)
            row = replace(
                row,
                name=row.name if change.name is None else change.name,
                tags=row.tags if change.tags is None else change.tags,
                public=row.public if change.public is None else change.public,
                updated_at=now_timestamp(),
            )
            tx.put_snapshot(row)
            return row

        return self.seen(await self._catalog.write("snapshot changed", edit))

    async def delete(self, snapshot_id: str) -> None:
        """Put the snapshot into the trash; volumes made from it and other snapshots stay.

        Raises:
            TransientState: it is being made.
            PreconditionFailed: a guest has it, a clone is being copied from it, or its volume
                reverted to it.
        """

        def throw(tx: Transaction) -> Intent | None:
            row = living_snapshot(tx, snapshot_id)
            status = move("snapshot", snapshot_id, row.status, Event.DELETE)
            if row.held_by is not None:
                raise PreconditionFailed(
                    "protected_resource",
                    f"snapshot {snapshot_id} is in use by a {row.held_by}: wait for it, or cancel "
                    "it (blockctl job list)",
                )
            self._check_unread(row)
            now = now_timestamp()
            row = replace(row, status=status, deleted_at=now, updated_at=now)
            return self._trash.throw(tx, row)

        self._trash.thrown(await self._catalog.write("snapshot deleted", throw))

    def _check_unread(self, row: Snapshot) -> None:
        """See that neither a guest nor anybody on this host reads it."""
        if row.attachments:
            having = ", ".join(one.domain_name for one in row.attachments)
            what = f"is attached to {having}: detach it first"
        elif self._classes.is_open(row.storage_class, row.id):
            what = "is open on this host: close it first"
        else:
            return
        raise PreconditionFailed("protected_resource", f"snapshot {row.id} {what}")

    async def undelete(
        self, snapshot_id: str, remember: Remember[Snapshot] | None = None
    ) -> Snapshot:
        """Bring a snapshot back from the trash, whole.

        Raises:
            NotFound: there is none, or it is erased.
            PreconditionFailed: it is not deleted.
        """

        def restore(tx: Transaction) -> Snapshot:
            row = tx.snapshot(snapshot_id)
            if row is None:
                raise NotFound("snapshot", snapshot_id)
            if row.status is not DELETED:
                raise PreconditionFailed(
                    "resource_not_usable", f"snapshot {snapshot_id} is not deleted"
                )
            self._classes.check_there(row)
            event = Event.UNDELETE if row.error is None else Event.UNDELETE_BROKEN
            status = move("snapshot", snapshot_id, row.status, event)
            row = replace(row, status=status, deleted_at=None, updated_at=now_timestamp())
            tx.put_snapshot(row)
            seen = self.seen(row)
            remember_answer(tx, seen, remember)
            return seen

        return await self._catalog.write("snapshot undeleted", restore)

    def seen(self, snapshot: Snapshot) -> Snapshot:
        """A row as a reader is told of it: whether its parent is open, whether its disk is gone."""
        front = _parent_front(snapshot)
        return self._shown(snapshot, front is not None and self._classes.is_open(*front))

    def _shown(self, snapshot: Snapshot, parent_is_open: bool) -> Snapshot:
        if snapshot.status in (AVAILABLE, EXPORTING) and (
            why := self._classes.why_missing(snapshot)
        ):
            snapshot = replace(snapshot, status=ERROR, error=why)
        return _shown(snapshot, parent_is_open)


def snapshot_of(
    volume: Volume, new: NewSnapshot, snapshot_id: str, project_id: str, *, is_thick: bool
) -> Snapshot:
    """The row of a snapshot that is about to be taken."""
    now = now_timestamp()
    return Snapshot(
        id=snapshot_id,
        project_id=project_id,
        name=new.name if new.name is not None else f"snp-{snapshot_id[:8]}",
        size_bytes=volume.size_bytes,
        storage_class=volume.storage_class,
        status=CREATING,
        public=new.public,
        tags=new.tags,
        volume_id=volume.id,
        parent=ParentVolume.of(volume),
        disk=disk_name(snapshot_id),
        created_at=now,
        updated_at=now,
        origin_disk=volume.disk if is_thick else None,
    )


def _parent_front(snapshot: Snapshot) -> tuple[str, str] | None:
    """The front whose being open shows in the snapshot: its parent's."""
    parent = snapshot.parent
    if parent is None or parent.status is not AVAILABLE:
        return None
    return snapshot.storage_class, parent.id


def _shown(snapshot: Snapshot, parent_is_open: bool) -> Snapshot:
    if snapshot.held_by is not None or snapshot.attachments:
        status = seen_status(snapshot.status, is_open=True)
        snapshot = replace(snapshot, status=status)
    if snapshot.parent is None or not (parent_is_open or snapshot.parent.is_attached):
        return snapshot
    status = seen_status(snapshot.parent.status, is_open=True)
    return replace(snapshot, parent=replace(snapshot.parent, status=status))
