"""Reading and writing disks ourselves: active for as long as somebody reads, then put away.

A crash may leave a disk active, and so may LVM that fails: it is put away later.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import structlog

from blockd.domain.errors import HostExhausted, StorageError
from blockd.domain.volume import OpenDisk
from blockd.host.uevents import wait_for_node
from blockd.storage.dm import DeviceInfo, DeviceMapper, lv_device_name
from blockd.storage.fronts import Lower
from blockd.storage.lvm_commands import LvmCommands

log = structlog.get_logger()


class DiskReading:
    """The disks of one class that are open for reading."""

    def __init__(
        self,
        vg: str,
        lvm: LvmCommands,
        mapper: DeviceMapper,
        turn: Callable[[], AbstractAsyncContextManager[None]],
        lower: Callable[[str], Awaitable[Lower]],
        amiss: Callable[[], None],
    ) -> None:
        """`lower` is the driver's: the device of a disk, activated within a turn if need be.

        Args:
            amiss: is called when a disk could not be put away: see `put_away_left`.
        """
        self._vg, self._lvm, self._mapper = vg, lvm, mapper
        self._turn, self._lower = turn, lower
        self._readers: Counter[str] = Counter()
        self._amiss = amiss
        #: Disks that could not be put away, and why not.
        self.left: dict[str, str] = {}

    @asynccontextmanager
    async def reading(self, disk: str) -> AsyncIterator[OpenDisk]:
        """See the port."""
        self._readers[disk] += 1
        try:
            if (info := self._info(disk)) is not None and self.stays_active(info.uuid):
                lower = await self._lower(disk)
            else:
                async with self._turn():
                    lower = await self._lower(disk)
            yield await self._opened(lower)
        finally:
            self._readers[disk] -= 1
            # Not to be cancelled: who leaves, however, leaves the disk put away.
            await asyncio.shield(self._put_away(disk))

    @asynccontextmanager
    async def writing(self, disk: str) -> AsyncIterator[OpenDisk]:
        """See the port. The disk stays active: `seal` puts it away."""
        async with self._turn():
            lower = await self._lower(disk)
        yield await self._opened(lower)

    def stays_active(self, uuid: str) -> bool:
        """Whether the device is there for others too, and never put away: no classic snapshot is
        without its origin, or was activated for a reader.
        """
        return any(target.kind == "snapshot" for target in self._mapper.table(uuid))

    async def _opened(self, lower: Lower) -> OpenDisk:
        node = Path(f"/dev/dm-{lower.number.partition(':')[2]}")
        await wait_for_node(node)
        return OpenDisk(str(node), lower.size_bytes)

    def _info(self, disk: str) -> DeviceInfo | None:
        return self._mapper.info_of_name(lv_device_name(self._vg, disk))

    async def _put_away(self, disk: str) -> None:
        try:
            info = self._info(disk)
            if info is not None and self.stays_active(info.uuid):
                if not self._readers[disk]:
                    del self._readers[disk]
                return
            async with self._turn():
                await self.put_away(disk)
        except (StorageError, HostExhausted) as err:
            self._leave(disk, err)

    async def put_away(self, disk: str) -> None:
        """Within a turn: deactivate it, unless somebody reads it, or others need it active.

        What fails is tried again.
        """
        # Asked only now: somebody may have come to read it while the turn was waited for.
        if self._readers[disk]:
            return
        del self._readers[disk]
        info = self._info(disk)
        if info is None or self.stays_active(info.uuid) or _lies_under_another(info):
            return
        try:
            await self._lvm.deactivate([disk])
        except (StorageError, HostExhausted) as err:
            self._leave(disk, err)

    def _leave(self, disk: str, err: Exception) -> None:
        log.warning("a disk stays active for a while", disk=disk, reason=str(err))
        self.left[disk] = str(err)
        self._amiss()

    async def put_away_left(self, ours: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        """What a crash or a failure left active; whoever needs it activates it again.

        Within a turn, or at start: no process where there is nothing. `ours` asks for our disks.
        """
        if self._closed_pictures() and (left := self.left_active(await ours())):
            await self._lvm.deactivate(left)
        self.left.clear()

    def left_active(self, disks: Iterable[str]) -> list[str]:
        """Those of `disks` that are active for a reader who is gone: no process."""
        names = {info.name for info in self._closed_pictures()}
        left = [disk for disk in disks if lv_device_name(self._vg, disk) in names]
        return [disk for disk in left if not self._readers[disk]]

    def _closed_pictures(self) -> list[DeviceInfo]:
        """Active, read-only and closed devices with names of ours, snapshots all: no process."""
        prefix = lv_device_name(self._vg, "blockd-")
        devices = self._mapper.devices(prefix)
        return [
            info
            for info in devices
            if info.read_only and info.open_count == 0 and not self.stays_active(info.uuid)
        ]


def _lies_under_another(info: DeviceInfo) -> bool:
    """Whether a device lies over it: the front of a snapshot that guests read."""
    holders = Path(f"/sys/dev/block/{info.number}/holders")  # Linux, ABI/stable/sysfs-block
    return holders.is_dir() and any(holders.iterdir())
