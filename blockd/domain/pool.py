"""What is known of the space behind a storage class."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PoolTrouble(StrEnum):
    """What keeps a pool from taking writes, or LVM from changing it (docs/pool-trouble.md)."""

    INACTIVE = "inactive"
    FAILED = "failed"
    NEEDS_CHECK = "needs_check"
    TRANSACTION_ID = "transaction_id"
    OUT_OF_METADATA_SPACE = "out_of_metadata_space"
    READ_ONLY = "read_only"
    OUT_OF_DATA_SPACE = "out_of_data_space"

    @property
    def passes_with_room(self) -> bool:
        """Nothing is damaged: the kernel goes on by itself once there is room."""
        return self in (PoolTrouble.OUT_OF_METADATA_SPACE, PoolTrouble.OUT_OF_DATA_SPACE)

    @property
    def is_repairable(self) -> bool:
        """A check of the metadata and another activation may end it; nothing is lost by them."""
        return self in (
            PoolTrouble.INACTIVE,
            PoolTrouble.FAILED,
            PoolTrouble.NEEDS_CHECK,
            PoolTrouble.READ_ONLY,
        )


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool's size and use, in bytes, as the kernel tells it.

    Attributes:
        storage_class: the class that lives in it, e.g. `sbs`.
        name: `vg/pool`.
        mode: `rw`, `ro`, `out_of_data_space` or `fail` (kernel, thin-provisioning.rst); `inactive`
            when the kernel does not have it: then all numbers of data and metadata are 0.
        free_bytes: of a thick class, what can still be handed out; None: space is handed out thin.
        group_free_bytes: of a thin class, what its volume group has left, as last counted.
        extent_bytes: what LVM hands out at once.
        when_full: of a thin class, what the kernel does with writes when it is full: `queue` (they
            wait, and fail after a minute) or `error` (they fail).
        transaction_ids: of a thin class, the kernel's and LVM's, if they were seen to differ.
        fault: why it is not active, in one line.
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
    group_free_bytes: int | None = None
    extent_bytes: int = 1
    when_full: str | None = None
    transaction_ids: tuple[int, int] | None = None
    fault: str = ""

    @property
    def trouble(self) -> PoolTrouble | None:
        """The worst of what is wrong with it."""
        if self.mode == "inactive":
            return PoolTrouble.INACTIVE
        if self.mode == "fail":
            return PoolTrouble.FAILED
        if self.needs_check:
            return PoolTrouble.NEEDS_CHECK
        if self.mode == "ro":
            # The kernel writes `ro` for both (Linux, dm-thin.c, pool_status).
            is_full = self.metadata_used_bytes >= self.metadata_size_bytes
            return PoolTrouble.OUT_OF_METADATA_SPACE if is_full else PoolTrouble.READ_ONLY
        if self.transaction_ids is not None:
            return PoolTrouble.TRANSACTION_ID
        return PoolTrouble.OUT_OF_DATA_SPACE if self.mode == "out_of_data_space" else None


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
