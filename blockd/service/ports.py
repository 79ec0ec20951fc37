"""What the service needs of a storage class, and of object storage.

A storage class is implemented by `storage/lvm_thin.py`, and by the directory of sparse files in
`tests/support` that passes the same contract suite.

Vocabulary: a *disk* is what holds bytes (an LV), named by us; a *front* is the device through
which a volume is used: exact size, stable path, named after the volume's id. Which disk is behind
which front is known to the catalog; a driver holds no state that it cannot read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from blockd.domain.allocation import Allocation
from blockd.domain.front import FrontSpec
from blockd.domain.pool import PoolUse
from blockd.domain.transfer import Exported, ExportNotes, ExportOrder, ImageFacts, Progress
from blockd.domain.volume import Device, OpenDisk


class StorageDriver(Protocol):
    """One storage class. Every `async` method that changes disks is called within `turn()`.

    Errors of all of them: `StorageError` (message: the reason in one line), `StorageOverdue`.
    """

    def turn(self) -> AbstractAsyncContextManager[None]:
        """The right to change this class's disks; first come, first served. Not re-entrant.

        Held on, after the caller left, while a storage command of his still runs.
        """

    async def create(self, disk: str, size_bytes: int) -> None:
        """Make an empty disk of at least `size_bytes` that reads as zeros.

        What a broken-off earlier attempt left under this name is removed first; a disk of this
        name that is not ours is left alone and is an error.
        """

    async def snapshot(self, snapshot_disk: str, disk: str, volume_id: str | None) -> None:
        """Make a read-only picture of `disk` at one instant.

        The front of `volume_id`, if it is up, is suspended meanwhile: file systems mounted on it
        are frozen. Earlier remains of the same name are removed first.
        """

    async def clone(self, disk: str, snapshot_disk: str, size_bytes: int) -> None:
        """Make a writable copy of a snapshot, of at least `size_bytes`, zeros beyond its end."""

    async def grow(self, disk: str, size_bytes: int) -> None:
        """Make the disk hold at least `size_bytes`; no-op when it does. The new part is zeros."""

    async def seal(self, disk: str) -> None:
        """Make a disk that is behind no front a read-only, inactive picture. Idempotent."""

    async def erase(self, disks: Sequence[str]) -> None:
        """Remove disks; those that do not exist, or are not ours, are passed over."""

    async def connect(self, front: FrontSpec) -> None:
        """Make the front be as `front` says: created, grown, or left as it is. Idempotent.

        A front that exists over another disk is an error: only `swap` changes disks.
        """

    async def disconnect(self, volume_id: str) -> None:
        """Remove the front; no-op when there is none. Needs no turn.

        Raises:
            InUse: somebody holds it open. The kernel decides, so there is no race.
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
        """Size and use of the space, from the kernel: no process."""

    async def start(self, fronts: Sequence[FrontSpec]) -> Sequence[str]:
        """Before anything else: activate, and set up fronts.

        Fronts of volumes not listed are removed when nobody holds them open. A front over another
        disk than listed is left alone: the journal will bring the catalog after it. What a crash
        left readable (`reading`) is put away.

        Returns:
            A line for each front that cannot be had; the others are up all the same.
        """

    async def disks(self) -> Mapping[str, int]:
        """Every disk that is ours, with its size in bytes. For recovery: one process."""


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
