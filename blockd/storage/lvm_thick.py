"""The class `bssd`: plain LVs with classic snapshots. Implements `service.ports.StorageDriver`.

A snapshot is an LV of its own, the copy-on-write store, active whenever its origin is. What LVM and
the kernel do, and what was measured: docs/decisions/0010-thick.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from blockd.domain.allocation import Allocation
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError, StorageError
from blockd.domain.front import FrontSpec
from blockd.domain.group import Picture
from blockd.domain.pool import ClassTraits, PoolUse
from blockd.domain.transfer import Progress
from blockd.domain.units import GIB
from blockd.storage.catalog_lv import CatalogLv
from blockd.storage.cow_finding import CowFinding
from blockd.storage.cow_sizes import CowSizes
from blockd.storage.cow_watch import CowWatch
from blockd.storage.disk_reading import DiskReading
from blockd.storage.dm import DeviceMapper
from blockd.storage.dm_events import dm_events
from blockd.storage.free_extents import FreeExtents
from blockd.storage.fronts import Fronts, Lower
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_disks import ClassSettings, Surroundings, wired
from blockd.storage.lvm_groups import LvmGroups
from blockd.storage.lvm_report import LogicalVolume
from blockd.storage.thick_revert import ThickRevert
from blockd.storage.vg_queue import VgQueue
from blockd.storage.zero_fill import Fill, fill


@dataclass(frozen=True, slots=True, kw_only=True)
class ThickSettings(ClassSettings):
    """And how its snapshots' stores are dimensioned: see `CowSizes` and `ClassTraits`."""

    reserve_bytes: int = 0
    max_snapshots: int = 4
    first_percent: float = 10.0
    grow_at_percent: float = 70.0
    grow_percent: float = 10.0
    chunk_bytes: int = 4096
    least_store_bytes: int = GIB


class LvmThick(LvmGroups):
    """See the port for what each method promises."""

    def __init__(
        self,
        settings: ThickSettings,
        catalog_id: str,
        lvm: LvmCommands,
        fronts: Fronts,
        mapper: DeviceMapper,
        queue: VgQueue,
        effects: SideEffects,
    ) -> None:
        super().__init__(settings, catalog_id, lvm, fronts, mapper, queue)
        self._settings, self._effects = settings, effects
        self.traits = ClassTraits(True, settings.max_snapshots, settings.reserve_bytes)
        amiss, turn = self._amiss.set, queue.turn
        self._reading = DiskReading(settings.vg, lvm, mapper, turn, self._lower, amiss)
        self._free = FreeExtents(lvm)
        self._catalog_lv = CatalogLv(catalog_id, lvm, mapper, self._free.taking)

    async def open(self) -> None:
        """Look at what there is.

        Raises:
            StartError: there is no such volume group.
        """
        try:
            await self._free.count()
        except LvmFailed as err:
            raise StartError(
                f"volume group {self._vg}: {err}; `blockd make-pool` makes the volume group"
            ) from err
        self.vg_uuid = self._free.vg_uuid
        settings = self._settings
        self._sizes = CowSizes(
            settings.chunk_bytes,
            settings.first_percent,
            settings.grow_at_percent,
            settings.grow_percent,
            self._free.extent_bytes,
            settings.least_store_bytes,
        )
        free, recount = self._free, partial(self.recount, urgent=True)
        self._watch = CowWatch(
            self._sizes, self._mapper, self._grow_in_time, lambda: free.free_bytes, recount
        )
        self._finding = CowFinding(
            self._watch, self._lvm.lvs, self._ours, self._info, self._queue.turn
        )
        self._revert = ThickRevert(
            self._lvm, self._mapper, self._info, self._found, self._watch, self._sizes, self._free
        )

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keep the stores ahead of the writers for the length of the block."""
        with dm_events(self._watch.look_now):
            tasks = [
                asyncio.create_task(self._watch.run(), name="cow-watch"),
                asyncio.create_task(self._finding.run(), name="cow-finding"),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._watch.close()

    # disks

    async def create(self, disk: str, size_bytes: int) -> None:
        """See the port."""

        async def make() -> None:
            async with self._free.taking(self._free.extents(size_bytes)):
                await self._lvm.create_linear(disk, size_bytes, self._tag)

        await self._make(disk, make)

    async def clone(self, disk: str, snapshot_disk: str, size_bytes: int) -> None:
        """See the port: `complete` copies."""
        if self._info(snapshot_disk) is None and await self._found(snapshot_disk) is None:
            raise StorageError(f"there is no LV {self._vg}/{snapshot_disk}")
        await self.create(disk, size_bytes)

    async def snapshot(self, snapshot_disk: str, disk: str, volume_id: str | None) -> None:
        """See the port."""
        first_bytes = self._sizes.first((await self._lower(disk)).size_bytes)

        async def make(store_bytes: int) -> None:
            still = self.still([] if volume_id is None else [volume_id])
            async with self._free.taking(store_bytes), still:
                await self._take([(snapshot_disk, disk, store_bytes)])

        if volume_id is None:
            # A revert's, which may have merged: nobody writes yet, and the store can grow later.
            await self._free.take_what_fits(
                first_bytes, lambda size: self._make(snapshot_disk, partial(make, size))
            )
        else:
            await self._make(snapshot_disk, partial(make, first_bytes))

    @asynccontextmanager
    async def taking(
        self, pictures: Sequence[Picture]
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """See the port."""
        stores = []
        for picture in pictures:
            size_bytes = (await self._lower(picture.of_disk)).size_bytes
            stores.append((picture.disk, picture.of_disk, self._sizes.first(size_bytes)))
        async with self._free.taking(sum(store_bytes for _, _, store_bytes in stores)):
            yield partial(self._take, stores)

    async def _take(self, stores: Sequence[tuple[str, str, int]]) -> None:
        """What LVM says is not enough: the kernel must have them, valid."""
        chunk_bytes, max_s = self._settings.chunk_bytes, self._settings.max_suspend_s
        await self._lvm.snapshot_cow(stores, self._tag, chunk_bytes, timeout_s=max_s)
        for snapshot_disk, _, _ in stores:
            info = self._info(snapshot_disk)
            if info is None:
                raise StorageError(f"LVM reported snapshot {snapshot_disk}, the kernel has none")
            status = await self._watch.add(snapshot_disk, info.uuid)
            if status.fault:
                raise StorageError(f"snapshot {snapshot_disk} is {status.fault} from the beginning")

    async def grow(self, disk: str, size_bytes: int) -> None:
        """See the port. Snapshots keep their length: the kernel copies nothing behind it."""
        lower = await self._lower(disk)
        if lower.size_bytes >= size_bytes:
            return
        try:
            async with self._free.taking(self._free.extents(size_bytes) - lower.size_bytes):
                if self._kind(disk) == "linear":
                    await self._lvm.extend(disk, size_bytes)
                else:
                    await self._grow_origin(disk, size_bytes)
        except LvmFailed:
            if (await self._lower(disk)).size_bytes < size_bytes:  # what the kernel has counts
                raise
        if (await self._lower(disk)).size_bytes < size_bytes:
            raise StorageError(f"LVM reported that {disk} has grown, the kernel says it has not")

    async def _grow_origin(self, disk: str, size_bytes: int) -> None:
        try:
            await self._lvm.extend_in_metadata(disk, size_bytes)
        except LvmFailed:
            # Refused, too, when an attempt that was cut short came as far as this.
            found = await self._found(disk)
            if found is None or found.size_bytes < size_bytes:
                raise
        await self._lvm.refresh(disk)

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
        """See the port."""
        async with self._reading.writing(disk) as target:
            if target.size_bytes < size_bytes:
                raise StorageError(f"{disk} has {target.size_bytes} bytes, not {size_bytes}")
            with self._effects.around("disk fill"):
                # In the extent that the disk ended in, zeros are not written again: snapshots of
                # it would have to copy them.
                looked_at = self._free.extents(old_bytes) - old_bytes
                if source is None:
                    order = Fill(
                        target.path, old_bytes, target.size_bytes, looked_at_bytes=looked_at
                    )
                    await fill(order, progress)
                    return
                async with self._reading.reading(source) as opened:
                    count = min(source_bytes or opened.size_bytes, opened.size_bytes)
                    order = Fill(target.path, old_bytes, target.size_bytes, opened.path, count)
                    await fill(order, progress)

    async def erase(self, disks: Sequence[str]) -> None:
        """See the port."""
        if not disks:
            return
        lvs, wanted = await self._lvm.lvs(), set(disks)
        ours = [lv for lv in lvs if lv.name in wanted and self._ours(lv)]
        # A snapshot that is being merged goes with its origin.
        going = {lv.name for lv in lvs if lv in ours or (lv.origin and lv.is_merging)}
        for lv in lvs:
            if lv.origin in wanted and lv.name not in going:
                raise StorageError(f"{lv.origin} is the origin of snapshot {lv.name}: not removed")
        if not ours:
            return
        gone = [lv for lv in lvs if lv in ours or (lv.is_merging and lv.origin in wanted)]
        async with self._free.taking(-sum(lv.size_bytes for lv in gone)):
            for lv in gone:
                self._watch.forget(lv.name)
            try:
                await self._lvm.remove([lv.name for lv in ours], self._tag)
            except BaseException:
                # Not shielded: who left a shield would leave the turn, and LVM go on without one.
                if await self._finding.find():  # while it still runs, say: `start` looks again
                    self._amiss.set()
                raise
        self._watch.look_now()

    async def _remove_remains(self, remains: LogicalVolume) -> None:
        await self.erase([remains.name])

    async def disks(self) -> Mapping[str, int]:
        """See the port; a snapshot has the size of what it pictures, not of its store."""
        return {
            lv.name: lv.origin_bytes or lv.size_bytes
            for lv in await self._lvm.lvs()
            if self._ours(lv) and not (lv.origin and lv.is_merging)
        }

    def _kind(self, disk: str) -> str:
        """The kernel's target of an active disk: `linear`, `snapshot-origin`…"""
        info = self._info(disk)
        return "" if info is None else self._mapper.table(info.uuid)[0].kind

    # stores

    async def _grow_in_time(self, snapshot: str, size_bytes: int) -> None:
        async with self._queue.turn(urgent=True):
            if snapshot in self._watch:
                await self._revert.extend_store(snapshot, size_bytes)

    def losses(self) -> AsyncIterator[tuple[str, str]]:
        """See the port."""
        return self._watch.losses()

    async def _lower(self, disk: str) -> Lower:
        was_active = self._active(disk) is not None
        lower = await super()._lower(disk)
        if not was_active and self._kind(disk) != "linear":
            await self._finding.find()  # its snapshots came with it
        return lower

    # reverting

    async def revert_bytes(self, disk: str, snapshot_disk: str, *, keep: bool) -> int:
        """See the port."""
        return await self._revert.needed_bytes(disk, snapshot_disk, keep=keep)

    async def reserve_for_revert(self, disk: str, snapshot_disk: str) -> None:
        """See the port."""
        await self._lower(disk)
        await self._revert.reserve(disk, snapshot_disk)

    async def begin_merge(self, disk: str, snapshot_disk: str) -> None:
        """See the port."""
        await self._lower(disk)
        await self._revert.begin(disk, snapshot_disk)

    async def merged(self, disk: str, progress: Progress) -> None:
        """See the port."""
        if self._info(disk) is None:
            async with self.turn():
                await self._lower(disk)
        await self._revert.merged(disk, progress)

    async def end_merge(self, disk: str, snapshot_disk: str) -> None:
        """See the port."""
        await self._lower(disk)
        await self._revert.end(disk, snapshot_disk)

    async def allocation(self, disk: str, size_bytes: int) -> Allocation | None:
        """See the port: a thick disk cannot tell."""
        del disk, size_bytes
        return None

    # room

    def volume_bytes(self, size_bytes: int) -> int:
        """See the port."""
        return self._free.extents(size_bytes)

    def snapshot_bytes(self, size_bytes: int) -> int:
        """See the port."""
        return self._sizes.first(self._free.extents(size_bytes))

    async def pool(self) -> PoolUse:
        """See the port: as counted."""
        size_bytes, free_bytes = self._free.size_bytes, self._free.free_bytes
        return PoolUse(
            storage_class=self._settings.name,
            name=self._vg,
            size_bytes=size_bytes,
            used_bytes=size_bytes - free_bytes,
            metadata_size_bytes=0,
            metadata_used_bytes=0,
            mode="rw",
            needs_check=False,
            free_bytes=free_bytes,
        )

    async def recount(self, *, urgent: bool = False) -> None:
        """See the port: one process."""
        async with self._queue.turn(urgent=urgent):
            await self._free.count()
        self._watch.look_now()

    async def extend_pool(self, size_bytes: int, metadata_bytes: int) -> None:
        """See the port."""
        del size_bytes, metadata_bytes
        raise StorageError(f"volume group {self._vg} is extended with `vgextend`, by hand")

    async def repair_pool(self) -> None:
        """See the port."""
        raise StorageError(f"volume group {self._vg} has no pool that could be repaired")

    async def pool_event(self, within_s: float) -> None:
        """See the port: what is free changes by our own doing, or by nobody telling us."""
        await asyncio.sleep(within_s)

    # start

    async def start(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> list[str]:
        """See the port."""
        problems = [*await self._start_fronts(fronts, hidden), *await self._put_away_left()]
        missed = await self._finding.find()
        return [*problems, *(f"class {self._settings.name}: {line}" for line in missed)]


@asynccontextmanager
async def open_lvm_thick(settings: ThickSettings, around: Surroundings) -> AsyncIterator[LvmThick]:
    """The driver.

    Raises:
        StartError: something is missing, or not fit.
    """
    with wired(settings, around) as (lvm, fronts, queue):
        driver = LvmThick(
            settings, around.catalog_id, lvm, fronts, around.mapper, queue, around.effects
        )
        await driver.open()
        async with driver.watching_disks(), driver.watching():
            yield driver
