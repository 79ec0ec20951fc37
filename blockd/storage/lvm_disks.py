"""What all classes of LVs have in common: one queue, one tag, fronts over disks.

An LV is ours if it bears the catalog's tag and the caller names it, who knows it from the catalog;
LVs of others in the volume group are never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path

from blockd.domain.backup import VG_TEXT, MetadataPart, whole
from blockd.domain.effects import SideEffects
from blockd.domain.errors import InUse, StorageError, StorageOverdue
from blockd.domain.finding import Finding, FindingKind
from blockd.domain.front import FrontSpec
from blockd.domain.inventory import FoundDisk, Inventory
from blockd.domain.units import SECTOR_BYTES
from blockd.domain.volume import Device, OpenDisk
from blockd.host.command import Companion
from blockd.storage.catalog_lv import CatalogLv
from blockd.storage.device_examination import DeviceExamination, left_active
from blockd.storage.disk_reading import DiskReading
from blockd.storage.dm import DeviceInfo, DeviceMapper, lv_device_name, lv_of_device_name
from blockd.storage.fronts import Fronts, Lower, front_owner
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_report import LogicalVolume
from blockd.storage.vg_queue import VgQueue
from blockd.storage.vg_watch import VgWatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSettings:
    """Where a class lives and how patient it is.

    Attributes:
        name: the class's, e.g. `sbs`.
        system_dir: holds our `lvm.conf`.
        udev: whether udevd runs.
        command_timeout_s: after this an LVM command is overdue; it is never killed.
        max_suspend_s: the longest a volume may stand still for a snapshot.
        devices: where disks of the volume group can be; empty: anywhere.
    """

    name: str
    vg: str
    system_dir: Path
    udev: bool
    command_timeout_s: float
    max_suspend_s: float
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the daemon hands to the driver of every class.

    It has locked the class's volume group, and no LVM command works in it.

    Attributes:
        watchdog: resumes fronts; see `Fronts`.
        waited: is told how long each turn was waited for.
        find_disks: writes our LVM configuration anew, when disks were added behind our back; is
            called within a turn of the LVM that it is given.
    """

    catalog_id: str
    mapper: DeviceMapper
    watchdog: Companion
    effects: SideEffects
    waited: Callable[[float], None]
    find_disks: Callable[[LvmCommands], Awaitable[None]]


@contextmanager
def wired(
    settings: ClassSettings, around: Surroundings
) -> Iterator[tuple[LvmCommands, Fronts, VgQueue]]:
    """What every driver works through: LVM in the one queue of its volume group, and fronts."""
    queue = VgQueue(around.waited)
    lvm = LvmCommands(
        settings.vg,
        settings.system_dir,
        queue,
        around.effects,
        udev=settings.udev,
        timeout_s=settings.command_timeout_s,
        find_disks=lambda: around.find_disks(lvm),
    )
    fronts = Fronts(
        around.mapper,
        around.watchdog,
        around.effects,
        owner=front_owner(settings.name, around.catalog_id),
        max_suspend_s=settings.max_suspend_s,
    )
    with closing(fronts):
        yield lvm, fronts, queue


class LvmDisks:
    """The part of `service.ports.StorageDriver` that does not depend on the kind of LV."""

    _reading: DiskReading
    #: LVs of the class that are nobody's disk: a pool with its parts.
    _private_lvs: Sequence[str] = ()

    def __init__(
        self,
        settings: ClassSettings,
        catalog_id: str,
        lvm: LvmCommands,
        fronts: Fronts,
        mapper: DeviceMapper,
        queue: VgQueue,
    ) -> None:
        self._vg, self._lvm, self._fronts, self._mapper = settings.vg, lvm, fronts, mapper
        self._queue = queue
        self._tag = f"blockd.{catalog_id}"
        self._amiss = asyncio.Event()
        self._catalog_lv = CatalogLv(catalog_id, lvm, mapper)
        #: What LVM said when the class was opened, for who asks first: nothing has changed since.
        self._at_open: list[LogicalVolume] | None = None
        self._vg_watch = VgWatch(settings.vg, settings.devices, self._amiss.set)
        self.vg_uuid = ""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """See the port."""
        return self._queue.turn()

    # disks

    async def seal(self, disk: str) -> None:
        try:
            await self._lvm.seal(disk)
        except LvmFailed:
            found = await self._found(disk)
            if found is None or found.writable:
                raise
            await self._lvm.deactivate([disk])

    async def disks(self) -> Mapping[str, int]:
        lvs, self._at_open = self._at_open, None
        if lvs is None:
            lvs = await self._lvs()
        return {lv.name: lv.size_bytes for lv in lvs if self._ours(lv)}

    async def _lvs(self) -> list[LogicalVolume]:
        return await self._lvm.lvs()

    async def inventory(self) -> Inventory:
        """See the port: two processes."""
        return await self._inventory(await self._lvm.lvs())

    async def _inventory(self, lvs: Sequence[LogicalVolume]) -> Inventory:
        group, fronts = await self._lvm.vg_facts(), {}
        for volume_id, info in self._fronts.ours().items():
            disk = await self.disk_behind(volume_id)
            if disk is not None:
                (target,) = self._mapper.table(info.uuid)
                size_bytes = target.length_sectors * SECTOR_BYTES
                fronts[volume_id] = FrontSpec(volume_id, disk, size_bytes)
        disks = {lv.name: _found_disk(lv) for lv in lvs if self._ours(lv)}
        return Inventory(group.extent_bytes, disks, fronts)

    async def copy_space(self, size_bytes: int) -> OpenDisk:
        """See the port."""
        return await self._catalog_lv.space(size_bytes)

    @asynccontextmanager
    async def metadata(self) -> AsyncIterator[Sequence[MetadataPart]]:
        """See the port."""
        async with self.turn():
            text = await self._lvm.text()
        yield [MetadataPart(VG_TEXT, whole(text))]

    async def _make(self, disk: str, make: Callable[[], Awaitable[None]]) -> None:
        """Run `make`; if that fails, remove what an earlier attempt left, and try once more."""
        try:
            try:
                await make()
            except LvmFailed as err:
                if not await self._lvm.remedy(err):
                    raise
                await make()
        except StorageOverdue:
            raise
        except StorageError:
            remains = await self._found(disk)
            if remains is None:
                raise
            if not self._ours(remains):
                raise StorageError(
                    f"LV {self._vg}/{disk} exists and is not blockd's: rename or remove it"
                ) from None
            await self._remove_remains(remains)
            await make()

    async def _remove_remains(self, remains: LogicalVolume) -> None:
        await self._lvm.remove([remains.name], self._tag)

    async def _found(self, disk: str) -> LogicalVolume | None:
        return next((lv for lv in await self._lvm.lvs() if lv.name == disk), None)

    def _ours(self, lv: LogicalVolume) -> bool:
        return self._tag in lv.tags

    # reading and writing them ourselves

    def reading(self, disk: str) -> AbstractAsyncContextManager[OpenDisk]:
        """See the port."""
        return self._reading.reading(disk)

    def writing(self, disk: str) -> AbstractAsyncContextManager[OpenDisk]:
        """See the port."""
        return self._reading.writing(disk)

    async def _put_away_left(self) -> list[str]:
        try:
            await self._reading.put_away_left(self.disks)
        except StorageError as err:
            return [str(err)]
        return []

    # examination

    async def examine(self) -> tuple[Inventory, list[Finding]]:
        """See the port: two LVM processes."""
        lvs = await self._lvm.lvs()
        return await self._inventory(lvs), await self._ailments(lvs)

    async def _ailments(self, lvs: Sequence[LogicalVolume]) -> list[Finding]:
        disks = [lv.name for lv in lvs if self._ours(lv)]
        examination = DeviceExamination(self._vg, self._mapper, self._fronts)
        findings = [
            *(left_active(disk) for disk in self._reading.left_active(disks)),
            *examination.find([*disks, *self._private_lvs]),
        ]
        if any(finding.kind is FindingKind.DEVICE_SUSPENDED for finding in findings):
            # The kernel would wait for it: a pool that is asked for a snapshot of its metadata
            # flushes its data first (Linux, dm-thin.c, metadata_pre_commit_callback).
            return findings
        return [*findings, *await self._examine_space(lvs, frozenset(disks))]

    async def mend(self, finding: Finding) -> None:
        """See the port."""
        disks = list(await self.disks())
        examination = DeviceExamination(self._vg, self._mapper, self._fronts)
        if finding.kind is FindingKind.DISK_ACTIVE:
            if left := self._reading.left_active({finding.subject} & set(disks)):
                await self._lvm.deactivate(left)
        elif not await examination.mend(finding, [*disks, *self._private_lvs]):
            await self._mend_space(finding)

    async def _examine_space(
        self, lvs: Sequence[LogicalVolume], ours: frozenset[str]
    ) -> list[Finding]:
        """What is particular to the class."""
        del lvs, ours
        return []

    async def _mend_space(self, finding: Finding) -> None:
        """Put one of these right."""

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
        return None if info is None else lv_of_device_name(self._vg, info.name)

    def is_open(self, volume_id: str) -> bool:
        return self._fronts.is_open(volume_id)

    def device(self, front: FrontSpec) -> Device:
        return Device(str(self._fronts.path(front.volume_id)), front.size_bytes)

    async def _lower(self, disk: str) -> Lower:
        """The device of an LV, which is activated if it is not."""
        lower = self._active(disk)
        if lower is None:
            try:
                await self._lvm.activate([disk])
            except LvmFailed:
                if self._active(disk) is None:  # what the kernel has counts, not what LVM says
                    raise
            lower = self._active(disk)
        if lower is None:
            raise StorageError(f"LV {self._vg}/{disk} has no device after activation")
        return lower

    def _info(self, disk: str) -> DeviceInfo | None:
        return self._mapper.info_of_name(lv_device_name(self._vg, disk))

    def _active(self, disk: str) -> Lower | None:
        info = self._info(disk)
        if info is None or not info.has_table:
            return None
        sectors = sum(target.length_sectors for target in self._mapper.table(info.uuid))
        return Lower(info.number, sectors * SECTOR_BYTES)

    # trouble

    @asynccontextmanager
    async def watching_disks(self) -> AsyncIterator[None]:
        """Notice for the length of the block what becomes of the disks, and what others change."""
        await self._vg_watch.open(self.vg_uuid)
        self._queue.watch = self._vg_watch
        looking = asyncio.create_task(self._vg_watch.run(), name="vg-watch")
        try:
            yield
        finally:
            self._queue.watch = None
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def device_changed(self, missed: bool) -> None:
        """Some block device came, went, or changed; or that may have been missed."""
        self._vg_watch.look_soon()
        if missed:
            self._amiss.set()

    async def amiss(self) -> None:
        """See the port."""
        await self._amiss.wait()
        self._amiss.clear()

    def problems(self) -> list[str]:
        """See the port."""
        left = self._reading.left.items()
        return [
            *self._lvm.slow(),
            *self._vg_watch.problems(),
            *(f"disk {disk} cannot be put away, and is tried again: {why}" for disk, why in left),
        ]

    # start

    async def _start_fronts(self, fronts: Sequence[FrontSpec], hidden: Sequence[str]) -> list[str]:
        """Activate what is needed and not active, and make the fronts be as listed."""
        problems = []
        needed = dict.fromkeys([*(front.disk for front in fronts), *hidden])
        missing = [disk for disk in needed if self._active(disk) is None]
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


def _found_disk(lv: LogicalVolume) -> FoundDisk:
    return FoundDisk(
        name=lv.name,
        size_bytes=lv.origin_bytes or lv.size_bytes,
        is_writable=lv.writable,
        origin=lv.origin or None,
        is_merging=bool(lv.origin and lv.is_merging),
    )
