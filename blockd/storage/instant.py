"""What only a thick class has to do, for the classes whose space is handed out thin.

Their disks are complete when they are made, snapshots need no origin, and a revert is a swap.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from blockd.domain.errors import StorageError
from blockd.domain.pool import ClassTraits
from blockd.domain.transfer import Progress


class InstantDisks:
    """The part of `service.ports.StorageDriver` that thin classes answer all alike."""

    traits = ClassTraits(is_thick=False)

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
        """They are complete."""
        del disk, source, source_bytes
        progress.total_bytes = size_bytes - old_bytes
        progress.skip(progress.total_bytes)

    async def revert_bytes(self, disk: str, snapshot_disk: str, *, keep: bool) -> int:
        """A swap needs no room."""
        del disk, snapshot_disk, keep
        return 0

    async def reserve_for_revert(self, disk: str, snapshot_disk: str) -> None:
        """Nothing to reserve."""

    async def begin_merge(self, disk: str, snapshot_disk: str) -> None:
        """Merging would eat the snapshot: docs/decisions/0003-fronts.md."""
        del snapshot_disk
        raise StorageError(f"{disk} is thin: it is reverted by swapping, not by merging")

    async def merged(self, disk: str, progress: Progress) -> None:
        """Nothing is ever being merged."""

    async def end_merge(self, disk: str, snapshot_disk: str) -> None:
        """Nothing was merged."""

    def volume_bytes(self, size_bytes: int) -> int:
        """Space is taken by writing."""
        del size_bytes
        return 0

    def snapshot_bytes(self, size_bytes: int) -> int:
        """Space is taken by diverging."""
        del size_bytes
        return 0

    async def recount(self) -> None:
        """The kernel is asked each time."""

    async def losses(self) -> AsyncIterator[tuple[str, str]]:
        """No snapshot is ever lost alone."""
        none: tuple[tuple[str, str], ...] = ()
        for loss in none:
            yield loss
