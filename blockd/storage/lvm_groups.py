"""Snapshots of several disks at one instant: their fronts stand still together.

Why so: docs/decisions/0023-group-snapshots.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from blockd.domain.errors import StorageError
from blockd.domain.group import Picture
from blockd.storage.lvm_commands import LvmFailed
from blockd.storage.lvm_disks import LvmDisks


class LvmGroups(LvmDisks, ABC):
    """The part of `service.ports.StorageDriver` that is about several disks at once."""

    @abstractmethod
    async def erase(self, disks: Sequence[str]) -> None:
        """See the port."""

    def still(self, volume_ids: Sequence[str]) -> AbstractAsyncContextManager[None]:
        """See the port."""
        return self._fronts.still(volume_ids, self._queue.keep_until)

    async def undo(self, pictures: Sequence[Picture]) -> bool:
        """See the port: one process, and one more where there is something to remove."""
        wanted = {picture.disk for picture in pictures}
        remains = [lv.name for lv in await self._lvm.lvs() if lv.name in wanted and self._ours(lv)]
        await self.erase(remains)
        return bool(remains)

    async def remedy(self, error: StorageError) -> bool:
        """See the port."""
        return isinstance(error, LvmFailed) and await self._lvm.remedy(error)
