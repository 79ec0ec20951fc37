"""What the service needs of a storage class, and of object storage.

A storage class is implemented by `storage/lvm_thin.py`, and by the directory of sparse files in
`tests/support` that passes the same contract suite.

Vocabulary: a *disk* is what holds bytes (an LV), named by us; a *front* is the device through
which a volume is used: exact size, stable path, named after the volume's id. Which disk is behind
which front is known to the catalog; a driver holds no state that it cannot read back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from blockd.domain.allocation import Allocation
from blockd.domain.backup import MetadataPart
from blockd.domain.errors import StorageError
from blockd.domain.finding import Finding
from blockd.domain.front import FrontSpec
from blockd.domain.group import Picture
from blockd.domain.inventory import Inventory
from blockd.domain.pool import ClassTraits, PoolUse
from blockd.domain.transfer import Exported, ExportNotes, ExportOrder, ImageFacts, Progress, Upload
from blockd.domain.volume import Device, OpenDisk


class StorageDriver(Protocol):
    """One storage class. Every `async` method that changes disks is called within `turn()`.

    Errors of all of them: `StorageError` (message: the reason in one line), `StorageOverdue`.
    """

    @property
    def traits(self) -> ClassTraits:
        """What the class is like."""

    def turn(self, *, holds_another: bool = False) -> AbstractAsyncContextManager[None]:
        """The right to change this class's disks; first come, first served. Not re-entrant.

        Held on, after the caller left, while a storage command of his still runs.

        Args:
            holds_another: the caller holds another class's turn meanwhile, so he goes before those
                who hold none.
        """

    async def create(self, disk: str, size_bytes: int) -> None:
        """Make an empty disk of at least `size_bytes` that reads as zeros (thick: see `complete`).

        What a broken-off earlier attempt left under this name is removed first; a disk of this
        name that is not ours is left alone and is an error.
        """

    async def snapshot(self, snapshot_disk: str, disk: str, volume_id: str | None) -> None:
        """Make a read-only picture of `disk` at one instant.

        The front of `volume_id`, if it is up, is suspended meanwhile: file systems mounted on it
        are frozen. Earlier remains of the same name are removed first. Thick, with None: if there
        is too little room for a store of the usual size, it has what there is, and grows later.
        """

    def still(self, volume_ids: Sequence[str]) -> AbstractAsyncContextManager[None]:
        """The fronts of these volumes, as far as they are up, suspended together for the block.

        No write to any of them passes, file systems mounted on them are frozen. What is made of
        them within is of one instant. Nothing within may wait for a file to be written.

        Raises:
            StorageOverdue: it took longer than is allowed, so what was made may have seen writes.
        """

    def taking(
        self, pictures: Sequence[Picture]
    ) -> AbstractAsyncContextManager[Callable[[], Awaitable[None]]]:
        """Get ready to make snapshots; what it yields makes them, once their fronts are `still`.

        Entered before `still`, left after it: what may take long is done here. If it fails some
        may be made, and `undo` must follow.
        """

    async def undo(self, pictures: Sequence[Picture]) -> bool:
        """Remove what an attempt at these snapshots left, or an earlier daemon; outside `still`.

        Returns:
            Whether there was anything.
        """

    async def remedy(self, error: StorageError) -> bool:
        """Do what is known to help against what an attempt at snapshots failed with, after `undo`.

        Returns:
            Whether another attempt is worth it.
        """

    async def clone(self, disk: str, snapshot_disk: str, size_bytes: int) -> None:
        """Make a writable copy of a snapshot, of at least `size_bytes`, zeros beyond its end."""

    async def grow(self, disk: str, size_bytes: int) -> None:
        """Make the disk hold at least `size_bytes`; no-op when it does. The new part is zeros."""

    async def seal(self, disk: str) -> None:
        """Make a disk that is behind no front a read-only, inactive picture. Idempotent."""

    async def erase(self, disks: Sequence[str]) -> None:
        """Remove disks; those that do not exist, or are not ours, are passed over.

        Raises:
            StorageError: among others, a disk is the origin of a snapshot that is not in `disks`:
                nothing was removed. Thick only.
        """

    async def complete(
        self,
        disk: str,
        size_bytes: int,
        *,
        old_bytes: int,
        source: str | None,
        source_bytes: int = 0,
        progress: Progress,
    ) -> None:
        """Thick, outside a turn: make good what `create`, `clone` and `grow` promise of the bytes.

        From `old_bytes` to the disk's end (whole extents) they become zeros, or those of the
        snapshot disk `source` with zeros behind them; they are durable when this returns. May be
        begun again at any time; a cancellation ends it within a second or so.

        Args:
            source_bytes: of the source only so many count, 0 is all; behind them is what a grow
                that was given up left there.
            progress: its total is set to what is to be written over.
        """

    async def revert_bytes(self, disk: str, snapshot_disk: str, *, keep: bool) -> int:
        """Thick: free bytes that a revert needs before it begins.

        The siblings' stores must take what the merge overwrites; with `keep`, a snapshot of what
        the disk holds is to be made first, and its store has to be as large as theirs. At the end
        the snapshot is taken again, of a disk that may have grown.
        """

    async def reserve_for_revert(self, disk: str, snapshot_disk: str) -> None:
        """Thick: grow the siblings' stores so that the merge cannot overflow them. Idempotent.

        Called when the snapshot to be kept has been made and nothing writes to the disk.

        Raises:
            StorageError: among others, the snapshot is gone.
        """

    async def begin_merge(self, disk: str, snapshot_disk: str) -> None:
        """Thick: from here on the disk reads as the snapshot did, also after a power cut.

        The disk is behind no front. The snapshot disk is gone. No-op if it is being merged, or is
        merged, which is what its absence means: so first it is seen to be there, by
        `reserve_for_revert`.
        """

    async def merged(self, disk: str, progress: Progress) -> None:
        """Thick, outside a turn: wait until the kernel has merged all of it.

        Returns at once when nothing is being merged. The wait may be cancelled; the merge goes on.
        """

    async def end_merge(self, disk: str, snapshot_disk: str) -> None:
        """Thick: LVM forgets the merged snapshot, whose name is free after it. Idempotent."""

    def volume_bytes(self, size_bytes: int) -> int:
        """What a new volume takes at once: thin 0, thick whole extents. No process."""

    def snapshot_bytes(self, size_bytes: int) -> int:
        """What a new snapshot of such an origin takes at once: thin 0, thick its first store."""

    def losses(self) -> AsyncIterator[tuple[str, str]]:
        """(snapshot disk, reason) of each snapshot that the kernel gave up, once each, for ever.

        Also of those found so at start. Thin: never yields, and ends at once.
        """

    async def connect(self, front: FrontSpec) -> None:
        """Make the front be as `front` says: created, grown, or left as it is. Idempotent.

        A front that exists over another disk is an error: only `swap` changes disks. That of a
        snapshot keeps its disk active, whoever else reads it, until `hide`.
        """

    async def disconnect(self, volume_id: str) -> None:
        """Remove the front; no-op when there is none. Needs no turn.

        Raises:
            InUse: somebody holds it open. The kernel decides, so there is no race.
        """

    async def hide(self, snapshot_id: str) -> None:
        """Remove the front of a snapshot, and put its disk away unless others read it. Idempotent.

        Raises:
            InUse: somebody holds it open; nothing changed.
        """

    async def swap(self, front: FrontSpec) -> None:
        """Put another disk behind an existing front that nobody holds open (makes it if absent).

        Raises:
            InUse: somebody holds it open; nothing changed.
        """

    async def disk_behind(self, volume_id: str) -> str | None:
        """The disk behind the front now, None without a front."""

    def is_open(self, volume_id: str) -> bool:
        """Whether anybody holds the front open: one ioctl, no process."""

    def device(self, front: FrontSpec) -> Device:
        """Path and size of a front."""

    def reading(self, disk: str) -> AbstractAsyncContextManager[OpenDisk]:
        """A sealed disk, readable for the length of the block; several readers share it.

        Takes turns of its own to make the disk readable and to put it away again, so it is never
        entered within `turn()`.
        """

    def writing(self, disk: str) -> AbstractAsyncContextManager[OpenDisk]:
        """A disk made by `create` and behind no front, writable for the length of the block.

        Not entered within `turn()`.
        """

    async def allocation(self, disk: str, size_bytes: int) -> Allocation | None:
        """Which clusters of the first `size_bytes` may hold data, within `reading` or `writing`.

        What is not listed reads as zeros. None: the class cannot tell, and all must be read.
        """

    async def pool(self) -> PoolUse:
        """Size and use of the space, from the kernel, or as counted: no process."""

    async def recount(self) -> None:
        """Before room is denied: look whether others have added some, which nobody tells us.

        Takes a turn of its own, so it is not called within one. Thin: to the volume group; and
        the pool's transaction id is compared with LVM's.
        """

    async def extend_pool(self, size_bytes: int, metadata_bytes: int) -> None:
        """Thin: the pool's data and its metadata to at least so much; 0 leaves one of them alone.

        To whole extents; passes where they are as large already. Takes a turn of its own, before
        all others. What the volume group has left is known anew when this returns, or raises.
        """

    async def repair_pool(self) -> None:
        """Thin, within a turn: take the pool down and up again, so that LVM checks its metadata.

        Fronts go, and come back by `start`, of which `amiss` tells, whatever came of it.

        Raises:
            PreconditionFailed: somebody holds a volume open; nothing was done.
            StorageError: a disk of the pool is in use, or LVM does not activate it, and why.
        """

    async def pool_event(self, within_s: float) -> None:
        """Wait until the kernel tells that the pool may have changed, but no longer than so."""

    async def start(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> Sequence[str]:
        """Before anything else: activate, and set up fronts. Again, within a turn, after trouble.

        Fronts of volumes not listed are removed when nobody holds them open. A front over another
        disk than listed is left alone: the journal will bring the catalog after it. What a crash
        left readable (`reading`, `hide`) is put away.

        Args:
            hidden: disks without a front whose snapshots must be readable: kept origins, disks of
                volumes in the trash, and those of volumes being reverted. Thin needs none of them.

        Returns:
            A line for each front that cannot be had; the others are up all the same.
        """

    async def amiss(self) -> None:
        """Wait until something may not be as it was left, which `start` would put right."""

    def problems(self) -> Sequence[str]:
        """A line for each thing that goes badly just now. No process, no waiting."""

    async def disks(self) -> Mapping[str, int]:
        """Every disk that is ours, with its size in bytes. For recovery: one process."""

    async def examine(self) -> tuple[Inventory, Sequence[Finding]]:
        """What there is, and what is wrong with it that can be seen without the catalog.

        Within a turn, so that nothing is under way; a few processes. Nothing is changed.
        """

    async def mend(self, finding: Finding) -> None:
        """Put right one of these, if it is (still) so. Within a turn."""

    async def inventory(self) -> Inventory:
        """The same with all that can be seen of them, and of the fronts. For a lost catalog."""

    async def copy_space(self, size_bytes: int) -> OpenDisk:
        """Space for a copy of the catalog, beside the disks: at least so large, ready for writing.

        Made if it is not there, extended if it is too small; what is in it stays. It is no disk:
        `disks` does not name it, nothing but this touches it, and it is found again without a
        catalog. No process where it is there and active.

        Raises:
            NoSpace: there is none, and no room for it.
        """

    def metadata(self) -> AbstractAsyncContextManager[Sequence[MetadataPart]]:
        """What LVM and dm-thin know of the disks, as of one instant, to be read within the block.

        Takes turns of its own to begin with, so it is never entered within `turn()`; changes go on
        while it is read, and exports wait. What of it cannot be had raises StorageError when it is
        read; the other parts can be.
        """


class Images(Protocol):
    """Object storage with images in it: `transfer/images.py`, or `no_images.py` without one.

    Errors of all methods: `ObjectStoreError`, a line about bucket, key or server; `ImageRefused`.
    """

    async def check_bucket(self, bucket: str) -> None:
        """See that the bucket can be used, before anything is promised."""

    async def look(self, bucket: str, key: str) -> ImageFacts:
        """Read an object's header and trailer, and decide whether it may be imported."""

    async def export(
        self,
        order: ExportOrder,
        source: OpenDisk,
        allocation: Allocation | None,
        notes: ExportNotes,
        progress: Progress,
    ) -> Exported:
        """Make the object. Whatever is raised, the upload still stands: `abort` ends it.

        Raises:
            StorageError: the disk cannot be read, or qemu-img failed.
        """

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """End an upload and free its parts; no-op when there is none."""

    async def abort_since(self, bucket: str, key: str, before: Sequence[str], since: str) -> None:
        """End the uploads to this key that were begun after the instant `since`, but `before`."""

    async def uploads(self, bucket: str) -> Sequence[Upload]:
        """Every upload to this bucket that was begun and not ended, whoever began it.

        Raises:
            BucketUnfit: among others; there is no such bucket.
        """

    async def exported(self, order: ExportOrder) -> int | None:
        """The size of the object, if it is the one that this order's upload became."""

    async def restore(self, image: ImageFacts, target: OpenDisk, progress: Progress) -> str:
        """Write the image's content to an empty disk, durably; holes stay holes.

        Returns:
            The content digest of what was written, read back from the disk.

        Raises:
            StorageError: the disk cannot be written, or the image cannot be read.
        """

    async def verify(self, image: ImageFacts, progress: Progress) -> str:
        """Read the whole image and answer the content digest of what is in it.

        Raises:
            StorageError: the image cannot be read.
        """


__all__ = ["FrontSpec", "Images", "StorageDriver"]
