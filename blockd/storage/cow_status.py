"""The kernel's status of a classic snapshot as a value. Pure.

Source: Linux, admin-guide/device-mapper/snapshot.rst; drivers/md/dm-snap.c, snapshot_status, and
dm-snap-persistent.c, persistent_usage.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockd.domain.errors import StorageError
from blockd.domain.units import SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class CowStatus:
    """A store's use, in bytes; all 0 when there is a `fault`.

    Attributes:
        used_bytes: up to where it is used, header and metadata included. While it is being merged,
            this falls; merged is what holds nothing but metadata.
        fault: `Invalid` (it overflowed, or an error of I/O; for good, also after a restart),
            `Overflow`, `Merge failed`; empty when all is well.
    """

    used_bytes: int
    size_bytes: int
    metadata_bytes: int
    fault: str = ""

    @property
    def data_bytes(self) -> int:
        """What of the origin is kept here: it goes back when this is merged."""
        return self.used_bytes - self.metadata_bytes


def parse_chunk_bytes(params: str) -> int:
    """The chunk of a store, from the table `<origin> <store> P|PO|N <chunk, in sectors> …`.

    Targets `snapshot` and `snapshot-merge` have the same.

    Raises:
        StorageError: it is none.
    """
    words = params.split()
    try:
        chunk_bytes = int(words[3]) * SECTOR_BYTES
    except (IndexError, ValueError):
        chunk_bytes = 0
    if chunk_bytes <= 0:
        raise StorageError(f"the kernel's table of a snapshot cannot be read: {params!r}")
    return chunk_bytes


def parse_cow_status(params: str) -> CowStatus:
    """Parse `<used>/<size> <metadata>`, in sectors, or a word of trouble.

    Targets `snapshot` and `snapshot-merge` have the same.

    Raises:
        StorageError: it is neither.
    """
    if params in ("Invalid", "Overflow", "Merge failed"):
        return CowStatus(0, 0, 0, params)
    try:
        use, metadata = params.split()
        used, _, size = use.partition("/")
        return CowStatus(
            int(used) * SECTOR_BYTES, int(size) * SECTOR_BYTES, int(metadata) * SECTOR_BYTES
        )
    except ValueError as err:
        raise StorageError(f"the kernel's status of a snapshot cannot be read: {params!r}") from err
