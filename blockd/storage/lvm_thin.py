"""The class `sbs`: thin LVs of one pool. Implements `service.ports.StorageDriver`.

One LVM process per change, none per read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

import structlog

from blockd.domain.allocation import Allocation
from blockd.domain.errors import StartError, StorageError
from blockd.domain.finding import Finding
from blockd.domain.front import FrontSpec
from blockd.domain.pool import PoolUse
from blockd.storage.dm import DeviceMapper, Target
from blockd.storage.fronts import Fronts
from blockd.storage.instant import InstantDisks
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_disks import ClassSettings, LvmDisks, Surroundings, wired
from blockd.storage.lvm_report import LogicalVolume
from blockd.storage.pool_status import PoolStatus, parse_pool_status
from blockd.storage.thin_collision import ThinCollision
from blockd.storage.thin_examination import ThinExamination
from blockd.storage.thin_reading import ThinReading
from blockd.storage.vg_queue import VgQueue

log = structlog.get_logger()

_STATUS_DEADLINE_S = 10.0
#: LVM removes the device of a pool when its first volume is made, and makes it under another name.
_ABSENT_S = 2.0
_LOOK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinSettings(ClassSettings):
    """And in which pool of the volume group."""

    pool: str


class LvmThin(InstantDisks, LvmDisks):
    """See the port for what each method promises."""

    _reading: ThinReading

    def __init__(
        self,
        settings: ThinSettings,
        catalog_id: str,
        lvm: LvmCommands,
        fronts: Fronts,
        mapper: DeviceMapper,
        queue: VgQueue,
    ) -> None:
        super().__init__(settings, catalog_id, lvm, fronts, mapper, queue)
        self._settings = settings
        self._reading = ThinReading(
            settings.vg, settings.pool, lvm, mapper, queue.turn, self._lower, self._amiss.set
        )
        self._status_threads = ThreadPoolExecutor(2, "pool-status")
        self._pool_uuid = ""
        self._chunk_bytes = 0

    def close(self) -> None:
        """Let go of the threads."""
        self._status_threads.shutdown(wait=False)

    # disks

    async def create(self, disk: str, size_bytes: int) -> None:
        async def make() -> None:
            await self._lvm.create_thin(disk, self._settings.pool, size_bytes, self._tag)
            await self._expect_empty(disk)

        await self._make(disk, make)

    async def _expect_empty(self, disk: str) -> None:
        """LVM takes a thin device that the kernel has already for the one that it just made.

        (lvm2, libdm/libdm-deptree.c, `expected_errno = EEXIST`): its old data would show.
        """
        info = self._info(disk)
        if info is None:
            raise StorageError(f"LV {self._vg}/{disk} has no device after its creation")
        target = await self._status(info.uuid)
        if target.params.split()[:1] != ["0"]:  # mapped sectors (thin-provisioning.rst)
            kept_id = await self._collision.keep(self._reading.device_id(disk))
            raise StorageError(
                f"LVM made {disk} of a thin device with old data, which is kept as number {kept_id}"
            )

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
        if (await self._lower(disk)).size_bytes >= size_bytes:
            return
        try:
            await self._lvm.extend(disk, size_bytes)
        except LvmFailed:
            # Refused, too, when an attempt that was cut short came as far as the metadata.
            found = await self._found(disk)
            if found is None or found.size_bytes < size_bytes:
                raise
            await self._lvm.refresh(disk)
        if (await self._lower(disk)).size_bytes < size_bytes:
            raise StorageError(f"LVM reported that {disk} has grown, the kernel says it has not")

    async def erase(self, disks: Sequence[str]) -> None:
        if disks:
            await self._lvm.remove(disks, self._tag)

    # reading and writing them ourselves

    async def allocation(self, disk: str, size_bytes: int) -> Allocation | None:
        return await self._reading.allocation(disk, size_bytes, self._pool_uuid)

    # examination

    async def _examine_space(
        self, lvs: Sequence[LogicalVolume], ours: frozenset[str]
    ) -> list[Finding]:
        return await self._examination.find(lvs, ours)

    async def _mend_space(self, finding: Finding) -> None:
        await self._examination.mend(finding)

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
        return parse_pool_status((await self._status(self._pool_uuid)).params)

    async def _status(self, uuid: str) -> Target:
        """Of the pool, or of a device in it."""
        until = time.monotonic() + _ABSENT_S
        while not (targets := await self._targets(uuid)):
            if time.monotonic() > until:
                raise StorageError(
                    f"pool {self._settings.vg}/{self._settings.pool} is not active, or a device in "
                    f"it is not: lvchange -ay {self._settings.vg}/{self._settings.pool}"
                )
            await asyncio.sleep(_LOOK_AGAIN_S)
        return targets[0]

    async def _targets(self, uuid: str) -> list[Target]:
        """Empty while there is no device, or one without a table."""

        def ask() -> list[Target]:
            try:
                return self._mapper.status(uuid)
            except StorageError:
                if self._mapper.info(uuid) is None:
                    return []
                raise

        # In a thread of its own: the kernel answers when the pool's metadata lock is free, and on a
        # disk that hangs it never is.
        asking = asyncio.get_running_loop().run_in_executor(self._status_threads, ask)
        try:
            async with asyncio.timeout(_STATUS_DEADLINE_S):
                return await asking
        except TimeoutError:
            raise StorageError(
                f"pool {self._settings.vg}/{self._settings.pool} does not answer: does a disk hang?"
            ) from None

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
        self._at_open = lvs
        # How LVM names the device (lvm2, lib/activate/dev_manager.c, build_dm_uuid).
        self._pool_uuid = f"LVM-{f'{pool.vg_uuid}{pool.uuid}'.replace('-', '')}-tpool"
        if self._mapper.info(self._pool_uuid) is None:
            try:
                await self._lvm.activate([pool_name])
            except LvmFailed as err:
                if self._mapper.info(self._pool_uuid) is None:
                    raise StartError(f"pool {vg}/{pool_name} cannot be had: {err}") from err
        self._collision = ThinCollision(
            pool_name, self._pool_uuid, self._tag, self._lvm, self._mapper, self._pool_status
        )
        self._lvm.clear_way = self._collision.clear_way
        self._private_lvs = (pool_name, f"{pool_name}_tdata", f"{pool_name}_tmeta")
        self._examination = ThinExamination(
            vg, pool_name, self._pool_uuid, self._reading, self._collision, self._pool_status
        )
        await self._undo_cut_short(pool.transaction_id)

    async def _undo_cut_short(self, transaction_id: int) -> None:
        """At start: the journal does anew what LVM was making when it was cut short."""
        try:
            if (await self._pool_status()).transaction_id == transaction_id:
                return
            self._at_open = None
            if not await self._collision.undo_cut_short():
                await self._collision.finish_removal()
        except StorageError as err:  # whoever changes something will hear of it
            log.exception("an LVM command cut short is not undone", reason=str(err))

    async def start(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> list[str]:
        del hidden  # thin snapshots need no origin
        problems = await self._put_away_leftovers()
        return problems + await self._start_fronts(fronts, ())

    async def _put_away_leftovers(self) -> list[str]:
        """What a crash left of a disk being read; whoever needs one of them activates it again."""
        try:
            if (await self._pool_status()).holds_snapshot:
                await self._reading.release_leftover(self._pool_uuid)
        except StorageError as err:
            return [str(err)]
        return await self._put_away_left()


@asynccontextmanager
async def open_lvm_thin(settings: ThinSettings, around: Surroundings) -> AsyncIterator[LvmThin]:
    """The driver.

    Raises:
        StartError: something is missing, or not fit.
    """
    with wired(settings, around) as (lvm, fronts, queue):
        driver = LvmThin(settings, around.catalog_id, lvm, fronts, around.mapper, queue)
        with closing(driver):
            await driver.open()
            async with driver.watching_disks():
                yield driver
