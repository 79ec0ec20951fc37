"""A model of LVM and the kernel with classic snapshots, for the real thick driver, natively.

Sizes and tables only, no bytes: LVM's commands change it, and the kernel's answers tell it. Tests
set what a store has used, and room that others take or give.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from blockd.domain.effects import SideEffects
from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from blockd.storage.dm import DeviceInfo, Target, lv_of_device_name
from blockd.storage.lvm_report import LogicalVolume, VolumeGroup
from blockd.storage.lvm_thick import LvmThick, ThickSettings
from blockd.storage.vg_queue import VgQueue

VG, CATALOG = "model", "tests"
EXTENT = 4 * MIB
_LVM_UUID = "LVM-"


@dataclass
class ModelLv:
    """One LV. Of snapshots: `size_bytes` is the store's, `pictured_bytes` the origin's then.

    Attributes:
        table: what the kernel's table says behind the two devices.
    """

    minor: int
    size_bytes: int
    origin: str = ""
    pictured_bytes: int = 0
    table: str = "P 8"
    used_sectors: int = 16
    metadata_sectors: int = 16
    fault: str = ""
    is_merging: bool = False
    is_active: bool = True


@dataclass
class Model:
    """The volume group and its devices; in part `DeviceMapper`, in part `LvmCommands`.

    Attributes:
        size_bytes: of the group; others may change it.
        commands: LVM commands that were run, their verbs.
        barred_bytes: what counts as free, but lies on disks that nothing may be put on.
        odd: LVs that the kernel answers nonsense for.
    """

    size_bytes: int
    lvs_there: dict[str, ModelLv] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    barred_bytes: int = 0
    odd: set[str] = field(default_factory=set)
    _minors: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def free_bytes(self) -> int:
        """What no LV has."""
        return self.size_bytes - sum(lv.size_bytes for lv in self.lvs_there.values())

    # the kernel

    def info_of_name(self, name: str) -> DeviceInfo | None:
        """See `DeviceMapper`."""
        disk = lv_of_device_name(VG, name) or ""
        lv = self.lvs_there.get(disk)
        if lv is None or not lv.is_active:
            return None
        return DeviceInfo(name, _LVM_UUID + disk, 254, lv.minor, 0, False, True)

    def devices(self, name_prefix: str) -> list[DeviceInfo]:
        """See `DeviceMapper`: nothing was left active."""
        del name_prefix
        return []

    def table(self, uuid: str) -> list[Target]:
        """See `DeviceMapper`."""
        disk = uuid.removeprefix(_LVM_UUID)
        lv = self.lvs_there[disk]
        if disk in self.odd:
            return []
        if lv.origin:
            real = self.lvs_there[lv.origin].minor + 1000
            params = f"254:{real} 254:{lv.minor + 1000} {lv.table}"
            return [Target(0, lv.pictured_bytes // 512, "snapshot", params)]
        kind, params = "linear", "8:0 2048"
        snapshots = [other for other in self.lvs_there.values() if other.origin == disk]
        if snapshots:
            kind, params = "snapshot-origin", f"254:{lv.minor + 1000}"
        return [Target(0, lv.size_bytes // 512, kind, params)]

    def status(self, uuid: str) -> list[Target]:
        """See `DeviceMapper`."""
        targets = self.table(uuid)
        lv = self.lvs_there[uuid.removeprefix(_LVM_UUID)]
        params = lv.fault or f"{lv.used_sectors}/{lv.size_bytes // 512} {lv.metadata_sectors}"
        return [Target(0, one.length_sectors, one.kind, params) for one in targets]

    # LVM

    async def vg_facts(self) -> VolumeGroup:
        """See `LvmCommands`, here and below."""
        self.commands.append("vgs")
        return VolumeGroup("vg", self.size_bytes, self.free_bytes, EXTENT)

    async def lvs(self) -> list[LogicalVolume]:
        """All of them, ours."""
        self.commands.append("lvs")
        return [
            LogicalVolume(
                name=name,
                uuid=name,
                vg_uuid="vg",
                size_bytes=lv.size_bytes,
                tags=frozenset({f"blockd.{CATALOG}"}),
                kind="linear",
                pool="",
                writable=not lv.origin,
                zeroes=False,
                chunk_bytes=0,
                origin=lv.origin,
                origin_bytes=lv.pictured_bytes,
                is_merging=lv.is_merging,
            )
            for name, lv in self.lvs_there.items()
        ]

    async def create_linear(self, lv: str, size_bytes: int, tag: str) -> None:
        """A plain LV."""
        del tag
        self._take("lvcreate", size_bytes)
        self.lvs_there[lv] = ModelLv(next(self._minors), size_bytes)

    async def snapshot_cow(
        self, stores: Sequence[tuple[str, str, int]], tag: str, chunk_bytes: int, **_: object
    ) -> None:
        """Snapshots: of each its LV, its origin, and the size of its store."""
        del tag
        for lv, origin, store_bytes in stores:
            self._take("lvcreate", store_bytes)
            self.lvs_there[lv] = ModelLv(
                next(self._minors),
                store_bytes,
                origin,
                self.lvs_there[origin].size_bytes,
                f"P {chunk_bytes // 512}",
            )

    async def extend(self, lv: str, size_bytes: int) -> None:
        """Of either kind."""
        self._take("lvextend", size_bytes - self.lvs_there[lv].size_bytes)
        self.lvs_there[lv].size_bytes = size_bytes

    async def activate(self, lvs: Sequence[str]) -> None:
        """An origin, and its snapshots with it."""
        self.commands.append("lvchange")
        for name, lv in self.lvs_there.items():
            if name in lvs or lv.origin in lvs:
                lv.is_active = True

    async def find_disks(self) -> None:
        """None is new."""

    def _take(self, verb: str, size_bytes: int) -> None:
        self.commands.append(verb)
        if size_bytes <= 0 or size_bytes % EXTENT:
            raise StorageError(f"{verb}: {size_bytes} bytes are asked for")
        if size_bytes > self.free_bytes - self.barred_bytes:
            raise StorageError(f"{verb}: insufficient free space: {self.free_bytes} bytes")

    def drop(self, lv: str) -> None:
        """Somebody removes an LV, or a merge ends."""
        del self.lvs_there[lv]


@asynccontextmanager
async def modelled(
    model: Model, *, is_watching: bool = False, **changes: Any
) -> AsyncIterator[LvmThick]:
    """The driver over it. Nobody watches its stores, unless asked to."""
    common: dict[str, Any] = {
        "name": "bssd",
        "vg": VG,
        "system_dir": Path("/nowhere"),
        "udev": False,
        "command_timeout_s": 10,
        "max_suspend_s": 10,
    }
    driver = LvmThick(
        ThickSettings(**common | changes),
        CATALOG,
        cast("Any", model),
        cast("Any", _NoFronts()),
        cast("Any", model),
        VgQueue(lambda _: None),
        SideEffects(),
    )
    await driver.open()
    tasks = []
    if is_watching:
        work = (driver._watch.run(), driver._finding.run())
        tasks = [asyncio.create_task(one) for one in work]
    try:
        yield driver
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        driver._watch.close()


class _NoFronts:
    """All are down."""

    def ours(self) -> dict[str, DeviceInfo]:
        """None."""
        return {}

    def still(
        self, _volume_ids: Sequence[str], _keep_until: object
    ) -> AbstractAsyncContextManager[None]:
        """Nothing stands still where nothing is up."""
        return nullcontext()
