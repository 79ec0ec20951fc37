"""The class `sbs`: thin LVs of one pool. Implements `service.ports.StorageDriver`.

One LVM process per change, none per read. An LV is ours if it bears the catalog's tag and the
caller names it, who knows it from the catalog; LVs of others in the volume group are never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blockd.domain.allocation import Allocation
from blockd.domain.effects import SideEffects
from blockd.domain.errors import InUse, StartError, StorageError, StorageOverdue
from blockd.domain.front import FrontSpec
from blockd.domain.pool import PoolUse
from blockd.domain.units import SECTOR_BYTES
from blockd.domain.volume import Device, OpenDisk
from blockd.host.command import Companion
from blockd.storage.dm import DeviceMapper, lv_device_name, lv_of_device_name
from blockd.storage.fronts import Fronts, Lower, front_owner
from blockd.storage.instant import InstantDisks
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_report import LogicalVolume
from blockd.storage.pool_status import PoolStatus, parse_pool_status
from blockd.storage.thin_reading import ThinReading
from blockd.storage.vg_queue import VgQueue

_STATUS_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class ThinSettings:
    """Where a class lives and how patient it is.

    Attributes:
        name: the class's, e.g. `sbs`.
        system_dir: holds our `lvm.conf`.
        udev: whether udevd runs.
        command_timeout_s: after this an LVM command is overdue; it is never killed.
        max_suspend_s: the longest a volume may stand still for a snapshot.
    """

    name: str
    vg: str
    pool: str
    system_dir: Path
    udev: bool
    command_timeout_s: float
    max_suspend_s: float


class LvmThin(InstantDisks):
    """See the port for what each method promises."""

    def __init__(
        self,
        settings: ThinSettings,
        catalog_id: str,
        lvm: LvmCommands,
        fronts: Fronts,
        mapper: DeviceMapper,
        queue: VgQueue,
    ) -> None:
        self._settings, self._lvm, self._fronts, self._mapper = settings, lvm, fronts, mapper
        self._queue = queue
        self._reading = ThinReading(
            settings.vg, settings.pool, lvm, mapper, queue.turn, self._lower
        )
        self._tag = f"blockd.{catalog_id}"
        self._status_threads = ThreadPoolExecutor(2, "pool-status")
        self._pool_uuid = ""
        self._chunk_bytes = 0
        self.vg_uuid = ""

    def close(self) -> None:
        """Let go of the threads."""
        self._status_threads.shutdown(wait=False)

    def turn(self) -> AbstractAsyncContextManager[None]:
        return self._queue.turn()

    # disks

    async def create(self, disk: str, size_bytes: int) -> None:
        pool = self._settings.pool
        await self._make(disk, lambda: self._lvm.create_thin(disk, pool, size_bytes, self._tag))

    async def snapshot(self, snapshot_disk: str, disk: str, volume_id: str | None) -> None:
        async def take() -> None:
            if volume_id is None:
                await self._take(snapshot_disk, disk)
            else:
                async with self._fronts.still(volume_id):
                    await self._take(snapshot_disk, disk)

        await self._make(snapshot_disk, take)

    async def _take(self, snapshot_disk: str, disk: str) -> None:
        """LVM may say that it made a snapshot when the kernel made none: compare its count.

        Seen when an origin was suspended by somebody else (docs/decisions/0003-fronts.md).
        """
        before = (await self._pool_status()).transaction_id
        await self._lvm.snapshot_thin(
            snapshot_disk, disk, self._tag, timeout_s=self._settings.max_suspend_s
        )
        after = (await self._pool_status()).transaction_id
        if after != before + 1:
            raise StorageError(
                f"LVM reported snapshot {snapshot_disk}, but the pool's transaction id went from "
                f"{before} to {after}: run `lvs` and `dmsetup status` on {self._settings.vg}"
            )

    async def clone(self, disk: str, snapshot_disk: str, size_bytes: int) -> None:
        await self._make(disk, lambda: self._lvm.clone_thin(disk, snapshot_disk, self._tag))
        await self.grow(disk, size_bytes)

    async def grow(self, disk: str, size_bytes: int) -> None:
        if (await self._lower(disk)).size_bytes < size_bytes:
            await self._lvm.extend(disk, size_bytes)

    async def seal(self, disk: str) -> None:
        try:
            await self._lvm.seal(disk)
        except LvmFailed:
            found = await self._found(disk)
            if found is None or found.writable:
                raise
            await self._lvm.deactivate([disk])

    async def erase(self, disks: Sequence[str]) -> None:
        if disks:
            await self._lvm.remove(disks, self._tag)

    async def disks(self) -> Mapping[str, int]:
        return {lv.name: lv.size_bytes for lv in await self._lvm.lvs() if self._ours(lv)}

    async def _make(self, disk: str, make: Callable[[], Awaitable[None]]) -> None:
        """Run `make`; if that fails, remove what an earlier attempt left, and try once more."""
        try:
            await make()
        except StorageOverdue:
            raise
        except StorageError as err:
            if isinstance(err, LvmFailed) and err.misses_disks:
                await self._lvm.find_disks()
                await make()
                return
            remains = await self._found(disk)
            if remains is None:
                raise
            if not self._ours(remains):
                raise StorageError(
                    f"LV {self._settings.vg}/{disk} exists and is not blockd's: rename or remove it"
                ) from None
            await self._lvm.remove([disk], self._tag)
            await make()

    async def _found(self, disk: str) -> LogicalVolume | None:
        return next((lv for lv in await self._lvm.lvs() if lv.name == disk), None)

    def _ours(self, lv: LogicalVolume) -> bool:
        return self._tag in lv.tags

    # reading and writing them ourselves

    def reading(self, disk: str) -> AbstractAsyncContextManager[OpenDisk]:
        return self._reading.reading(disk)

    def writing(self, disk: str) -> AbstractAsyncContextManager[OpenDisk]:
        return self._reading.writing(disk)

    async def allocation(self, disk: str, size_bytes: int) -> Allocation | None:
        return await self._reading.allocation(disk, size_bytes, self._pool_uuid)

    # fronts

    async def connect(self, front: FrontSpec) -> None:
        lower = await self._lower(front.disk)
        await self._fronts.connect(front.volume_id, lower, front.size_bytes)

    async def disconnect(self, volume_id: str) -> None:
        await self._fronts.disconnect(volume_id)

    async def swap(self, front: FrontSpec) -> None:
        lower = await self._lower(front.disk)
        await self._fronts.swap(front.volume_id, lower, front.size_bytes)

    async def disk_behind(self, volume_id: str) -> str | None:
        number = self._fronts.number_behind(volume_id)
        info = None if number is None else self._mapper.info_of_number(number)
        return None if info is None else lv_of_device_name(self._settings.vg, info.name)

    def is_open(self, volume_id: str) -> bool:
        return self._fronts.is_open(volume_id)

    def device(self, front: FrontSpec) -> Device:
        return Device(str(self._fronts.path(front.volume_id)), front.size_bytes)

    async def _lower(self, disk: str) -> Lower:
        """The device of an LV, which is activated if it is not."""
        lower = self._active(disk)
        if lower is None:
            await self._lvm.activate([disk])
            lower = self._active(disk)
        if lower is None:
            raise StorageError(f"LV {self._settings.vg}/{disk} has no device after activation")
        return lower

    def _active(self, disk: str) -> Lower | None:
        info = self._mapper.info_of_name(lv_device_name(self._settings.vg, disk))
        if info is None or not info.has_table:
            return None
        sectors = sum(target.length_sectors for target in self._mapper.table(info.uuid))
        return Lower(info.number, sectors * SECTOR_BYTES)

    # the pool

    async def pool(self) -> PoolUse:
        status = await self._pool_status()
        return PoolUse(
            storage_class=self._settings.name,
            name=f"{self._settings.vg}/{self._settings.pool}",
            size_bytes=status.data_blocks * self._chunk_bytes,
            used_bytes=status.data_used_blocks * self._chunk_bytes,
            metadata_size_bytes=status.metadata_bytes,
            metadata_used_bytes=status.metadata_used_bytes,
            mode=status.mode,
            needs_check=status.needs_check,
        )

    async def _pool_status(self) -> PoolStatus:
        # In a thread of its own: the kernel answers when the pool's metadata lock is free, and on a
        # disk that hangs it never is.
        loop = asyncio.get_running_loop()
        asking = loop.run_in_executor(self._status_threads, self._mapper.status, self._pool_uuid)
        try:
            async with asyncio.timeout(_STATUS_DEADLINE_S):
                (target,) = await asking
        except TimeoutError:
            raise StorageError(
                f"pool {self._settings.vg}/{self._settings.pool} does not answer: does a disk hang?"
            ) from None
        return parse_pool_status(target.params)

    # start

    async def open(self) -> None:
        """Look at what there is, and activate the pool.

        Raises:
            StartError: there is no such volume group or pool, or the pool is not fit.
        """
        vg, pool_name = self._settings.vg, self._settings.pool
        try:
            lvs = await self._lvm.lvs()
        except LvmFailed as err:
            raise StartError(
                f"volume group {vg}: {err}; `blockd make-pool` makes volume group and pool"
            ) from err
        pool = next((lv for lv in lvs if lv.name == pool_name), None)
        if pool is None or pool.kind != "thin-pool":
            raise StartError(
                f"there is no thin pool {vg}/{pool_name}; `blockd make-pool` makes one"
            )
        if not pool.zeroes:
            raise StartError(
                f"pool {vg}/{pool_name} does not zero new chunks, so volumes would show old data: "
                f"lvchange --zero y {vg}/{pool_name}"
            )
        self.vg_uuid, self._chunk_bytes = pool.vg_uuid, pool.chunk_bytes
        # How LVM names the device (lvm2, lib/activate/dev_manager.c, build_dm_uuid).
        self._pool_uuid = f"LVM-{f'{pool.vg_uuid}{pool.uuid}'.replace('-', '')}-tpool"
        if self._mapper.info(self._pool_uuid) is None:
            await self._lvm.activate([pool_name])

    async def start(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> list[str]:
        del hidden  # thin snapshots need no origin
        problems = await self._put_away_leftovers()
        missing = [front.disk for front in fronts if self._active(front.disk) is None]
        if missing:
            problems += await self._activate_what_exists(missing)
        wanted = {front.volume_id: front for front in fronts}
        there = self._fronts.ours()
        for volume_id, info in there.items():
            if volume_id not in wanted and info.open_count == 0:
                try:
                    await self._fronts.disconnect(volume_id)
                except (InUse, StorageError) as err:
                    problems.append(f"front of no volume: {err}")
        for volume_id, front in wanted.items():
            lower = self._active(front.disk)
            # A front over another disk is a revert's, cut short between swap and commit: the
            # journal brings the catalog after it.
            if lower is None:
                problems.append(f"volume {volume_id}: its LV {front.disk} is missing or inactive")
            elif self._fronts.number_behind(volume_id) in (None, lower.number):
                try:
                    await self._fronts.connect(volume_id, lower, front.size_bytes)
                except (StorageError, OSError) as err:
                    problems.append(f"volume {volume_id}: {err}")
        return problems

    async def _put_away_leftovers(self) -> list[str]:
        """What a crash left of a disk being read; whoever needs one of them activates it again."""
        try:
            if (await self._pool_status()).holds_snapshot:
                await self._reading.release_leftover(self._pool_uuid)
            if active := self._reading.left_active():
                disks = {
                    lv_device_name(self._settings.vg, disk): disk for disk in await self.disks()
                }
                if ours := [disks[info.name] for info in active if info.name in disks]:
                    await self._lvm.deactivate(ours)
        except StorageError as err:
            return [str(err)]
        return []

    async def _activate_what_exists(self, disks: Sequence[str]) -> list[str]:
        """All in one process; one more if that fails because some are gone.

        LVM goes on past an LV that it cannot activate, so what is left is told and no more.
        """
        try:
            await self._lvm.activate(disks)
        except LvmFailed:
            there = await self.disks()
            present = [disk for disk in disks if disk in there and self._active(disk) is None]
            try:
                if present:
                    await self._lvm.activate(present)
            except LvmFailed as err:
                return [str(err)]
        return []


@asynccontextmanager
async def open_lvm_thin(
    settings: ThinSettings,
    catalog_id: str,
    mapper: DeviceMapper,
    watchdog: Companion,
    effects: SideEffects,
    waited: Callable[[float], None],
    find_disks: Callable[[], Awaitable[None]],
) -> AsyncIterator[LvmThin]:
    """The driver. The caller has locked its volume group, and no LVM command works in it.

    Args:
        waited: is told how long each turn was waited for.
        find_disks: writes our LVM configuration anew, when disks were added behind our back.

    Raises:
        StartError: something is missing, or not fit.
    """
    queue = VgQueue(waited)
    lvm = LvmCommands(
        settings.vg,
        settings.system_dir,
        queue,
        effects,
        udev=settings.udev,
        timeout_s=settings.command_timeout_s,
        find_disks=find_disks,
    )
    fronts = Fronts(
        mapper,
        watchdog,
        effects,
        owner=front_owner(settings.name, catalog_id),
        max_suspend_s=settings.max_suspend_s,
    )
    driver = LvmThin(settings, catalog_id, lvm, fronts, mapper, queue)
    try:
        await driver.open()
        yield driver
    finally:
        driver.close()
        fronts.close()
