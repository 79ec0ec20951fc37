"""What a storage class has, whatever the catalog says: for a catalog that was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockd.domain.front import FrontSpec


@dataclass(frozen=True, slots=True)
class FoundDisk:
    """A disk that bears our mark.

    Attributes:
        size_bytes: whole extents; of a thick snapshot, what it pictures.
        is_writable: a volume's disk; snapshots are read-only, imports until they are whole are not.
        origin: the disk it was made from, as far as that is still known: for thin classes until one
            of the two, or of its siblings, is merged or removed.
        is_merging: a thick snapshot that is being merged into its origin.
    """

    name: str
    size_bytes: int
    is_writable: bool
    origin: str | None = None
    is_merging: bool = False


@dataclass(frozen=True, slots=True)
class Inventory:
    """Every disk of ours by its name, and every front that is up by its volume's id.

    `extent_bytes` is the grid of the disks' sizes; fronts have their volumes' exact ones.
    """

    extent_bytes: int
    disks: Mapping[str, FoundDisk]
    fronts: Mapping[str, FrontSpec]

    def whole_extents(self, size_bytes: int) -> int:
        """The size of a disk that was made for so many bytes."""
        return -(-size_bytes // self.extent_bytes) * self.extent_bytes
