"""The free space of a volume group, kept count of without asking LVM each time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from blockd.domain.errors import StorageError, StorageOverdue
from blockd.storage.lvm_commands import LvmCommands


class FreeExtents:
    """Free bytes, in whole extents. Others may take some: that shows at the next recount."""

    def __init__(self, lvm: LvmCommands) -> None:
        self._lvm = lvm
        self._is_stale = False
        self.vg_uuid = ""
        self.size_bytes = self.free_bytes = 0
        self.extent_bytes = 1

    async def count(self) -> None:
        """Ask LVM: one process.

        Raises:
            LvmFailed: there is no such volume group.
        """
        group = await self._lvm.vg_facts()
        self.vg_uuid, self.extent_bytes = group.uuid, group.extent_bytes
        self.size_bytes, self.free_bytes = group.size_bytes, group.free_bytes
        self._is_stale = False

    async def take_what_fits(
        self, wanted_bytes: int, take: Callable[[int], Awaitable[None]]
    ) -> None:
        """Have `take` take so much, or what is free in truth, or a single extent."""
        await self.count()
        fitting_bytes = min(wanted_bytes, max(self.free_bytes, self.extent_bytes))
        try:
            await take(fitting_bytes)
        except StorageOverdue:
            raise
        except StorageError:
            # What is free may lie on disks that LVM may put nothing on.
            if fitting_bytes <= self.extent_bytes:
                raise
            await take(self.extent_bytes)

    def extents(self, size_bytes: int) -> int:
        """Rounded up to whole extents."""
        return -(-size_bytes // self.extent_bytes) * self.extent_bytes

    @asynccontextmanager
    async def taking(self, count_bytes: int) -> AsyncIterator[None]:
        """An LVM command that takes `count_bytes` (or gives: negative), within a turn.

        When it fails, nobody knows what it did, and LVM is asked.
        """
        if self._is_stale:
            await self.count()
        self._is_stale = True  # for whoever comes after a cancellation, or while LVM still runs
        try:
            yield
        except StorageOverdue:
            raise  # it still runs: whoever comes next counts
        except StorageError:
            await self.count()
            raise
        self.free_bytes -= self.extents(count_bytes)
        self._is_stale = False
