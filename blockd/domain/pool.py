"""What is known of the space behind a storage class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool's size and use, in bytes, as the kernel tells it.

    Attributes:
        storage_class: the class that lives in it, e.g. `sbs`.
        name: `vg/pool`.
        mode: `rw`, `ro`, `out_of_data_space` or `fail` (kernel, thin-provisioning.rst).
        free_bytes: of a thick class, what can still be handed out; None: space is handed out thin.
    """

    storage_class: str
    name: str
    size_bytes: int
    used_bytes: int
    metadata_size_bytes: int
    metadata_used_bytes: int
    mode: str
    needs_check: bool
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ClassTraits:
    """What a class is like, as far as the service must know.

    Attributes:
        is_thick: work is left to `complete`, snapshots need their origin, a revert is a merge.
        max_snapshots: of one origin; None: no limit.
        reserve_bytes: thick: free space that nothing new may take.
    """

    is_thick: bool
    max_snapshots: int | None = None
    reserve_bytes: int = 0
