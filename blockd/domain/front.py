"""What the front device of a volume, or of a snapshot that guests read, shall be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrontSpec:
    """The front that a live volume shall have: `size_bytes` over `disk`.

    Attributes:
        volume_id: whose it is; of a snapshot's, the snapshot's id.
        is_read_only: the kernel refuses writes, as to all fronts of snapshots.
    """

    volume_id: str
    disk: str
    size_bytes: int
    is_read_only: bool = False
