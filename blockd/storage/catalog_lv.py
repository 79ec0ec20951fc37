"""The small LV that holds a copy of the catalog, in each volume group of ours.

It is named and tagged after the catalog, so that it can be found without one, and has another tag
than the disks: whoever looks for disks never meets it. It is a plain LV beside the thin pool, which
may be full or broken when the copy is needed, and stays active, so that a copy costs no process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Final
from uuid import UUID

from blockd.domain.errors import NoSpace, StorageError
from blockd.domain.units import SECTOR_BYTES, format_size
from blockd.domain.volume import OpenDisk
from blockd.host.uevents import wait_for_node
from blockd.storage.dm import DeviceMapper, lv_device_name
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_report import LogicalVolume

_NAME: Final = "blockd-catalog-"
_TAG: Final = "blockd-catalog."
_DISK_TAG: Final = "blockd."


class CatalogLv:
    """The LV for one catalog's copy in one volume group."""

    def __init__(
        self,
        catalog_id: str,
        lvm: LvmCommands,
        mapper: DeviceMapper,
        taking: Callable[[int], AbstractAsyncContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        """`taking` is entered with the bytes that an LVM command is about to take."""
        self._lvm, self._mapper, self._taking = lvm, mapper, taking
        self._name, self._tag = _NAME + catalog_id, _TAG + catalog_id

    async def space(self, size_bytes: int) -> OpenDisk:
        """Within a turn: see `copy_space` of the port."""
        disk = await self.existing()
        if disk is None:
            await self._make(size_bytes)
        elif disk.size_bytes < size_bytes:
            async with self._taking(size_bytes - disk.size_bytes):
                await self._with_room(size_bytes, self._lvm.extend(self._name, size_bytes))
        else:
            return disk
        disk = await self._active()
        if disk is None:
            raise StorageError(f"LV {self._lvm.vg}/{self._name} has no device")
        return disk

    async def existing(self) -> OpenDisk | None:
        """What there is of it, activated; None: nothing. One process if it is not active."""
        disk = await self._active()
        if disk is None:
            await self._lvm.activate_tagged(self._name, self._tag)
            disk = await self._active()
        return disk

    async def _make(self, size_bytes: int) -> None:
        there = [lv for lv in await self._lvm.lvs() if lv.name == self._name]
        if there and self._tag in there[0].tags:
            raise StorageError(f"LV {self._lvm.vg}/{self._name} cannot be activated")
        if there:
            raise StorageError(f"LV {self._lvm.vg}/{self._name} is not blockd's: rename it")
        async with self._taking(size_bytes):
            creating = self._lvm.create_linear(self._name, size_bytes, self._tag)
            await self._with_room(size_bytes, creating)

    async def _with_room(self, size_bytes: int, command: Awaitable[None]) -> None:
        try:
            await command
        except LvmFailed as err:
            if b"nsufficient" not in err.output.stderr:
                raise
            raise NoSpace(
                f"volume group {self._lvm.vg} has no {format_size(size_bytes)} for the copy of the "
                "catalog: remove an LV that is not needed, or extend the volume group"
            ) from err

    async def _active(self) -> OpenDisk | None:
        info = self._mapper.info_of_name(lv_device_name(self._lvm.vg, self._name))
        if info is None or not info.has_table:
            return None
        node = Path(f"/dev/dm-{info.minor}")
        await wait_for_node(node)
        sectors = sum(target.length_sectors for target in self._mapper.table(info.uuid))
        return OpenDisk(str(node), sectors * SECTOR_BYTES)


def catalogs_with_copies(lvs: Sequence[LogicalVolume]) -> list[str]:
    """The ids of the catalogs that have a copy among these LVs: name and tag agree."""
    ids = [lv.name.removeprefix(_NAME) for lv in lvs if lv.name.startswith(_NAME)]
    tags = {lv.name: lv.tags for lv in lvs}
    return [id_ for id_ in ids if _is_id(id_) and _TAG + id_ in tags[_NAME + id_]]


def disks_by_catalog(lvs: Sequence[LogicalVolume]) -> dict[str, int]:
    """How many disks of each catalog are among these LVs, by the catalog's id."""
    found: dict[str, int] = {}
    for lv in lvs:
        for tag in lv.tags:
            id_ = tag.removeprefix(_DISK_TAG)
            if id_ != tag and _is_id(id_):
                found[id_] = found.get(id_, 0) + 1
    return found


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
