"""What a contract test holds in its hand: a driver, and short ways to say what is done to it."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from blockd.domain.errors import StorageError
from blockd.domain.intent import disk_name, new_id
from blockd.domain.transfer import Progress
from blockd.domain.units import MIB
from blockd.service.ports import FrontSpec, StorageDriver
from tests.support import stamps
from tests.support.file_driver import FileDriver

T = TypeVar("T")

#: Foreign disks hold this generation, and have this size.
FOREIGN_GENERATION = 666
FOREIGN_BYTES = 4 * MIB

#: A driver that has lost its turn must fail the suite, not stop it.
CLEANING_S = 60


class Storage(ABC):
    """A started driver, and every front that a test made with it, for cleaning."""

    def __init__(self, driver: StorageDriver) -> None:
        self.driver = driver
        self._volume_ids: list[str] = []

    @abstractmethod
    async def apart(self, work: Callable[[], T]) -> T:
        """Do blocking work on a front while the driver goes on; a suspended front holds it."""

    @abstractmethod
    async def make_foreign(self, disk: str) -> None:
        """Make a disk as somebody else would: of any name, without our mark, stamped."""

    @abstractmethod
    async def expect_foreign(self, disk: str) -> None:
        """Check that a foreign disk is there and whole."""

    @abstractmethod
    async def restart(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> None:
        """Forget what the driver has in memory, and start on what is there."""

    @property
    def is_thick(self) -> bool:
        """Whether what the driver makes must be completed, and is reverted by merging."""
        return self.driver.traits.is_thick

    def name(self) -> str:
        """A fresh name for a disk."""
        return disk_name(new_id())

    def front(self, disk: str, size_bytes: int) -> FrontSpec:
        """The front of a fresh volume; not made yet."""
        front = FrontSpec(new_id(), disk, size_bytes)
        self._volume_ids.append(front.volume_id)
        return front

    def path(self, front: FrontSpec) -> Path:
        """Where the front's bytes are used."""
        return Path(self.driver.device(front).path)

    def open_front(self, front: FrontSpec) -> int:
        """Open a front for writing; the caller closes the descriptor."""
        return os.open(self.path(front), os.O_RDWR | os.O_CLOEXEC)

    async def create(self, size_bytes: int, disk: str | None = None) -> str:
        """An empty disk."""
        disk = disk or self.name()
        async with self.driver.turn():
            await self.driver.create(disk, size_bytes)
        await self.complete(disk, size_bytes)
        return disk

    async def complete(
        self, disk: str, size_bytes: int, *, old_bytes: int = 0, source: str | None = None
    ) -> None:
        """What a thick class leaves undone in a turn."""
        if self.is_thick:
            await self.driver.complete(
                disk, size_bytes, old_bytes=old_bytes, source=source, progress=Progress()
            )

    async def connect(self, front: FrontSpec) -> Path:
        """Bring a front up; its path."""
        async with self.driver.turn():
            await self.driver.connect(front)
        return self.path(front)

    async def disconnect(self, front: FrontSpec) -> None:
        """Take a front down."""
        async with self.driver.turn():
            await self.driver.disconnect(front.volume_id)

    async def volume(self, size_bytes: int, generation: int = 0) -> FrontSpec:
        """A new disk with its front, stamped if a generation is given."""
        front = self.front(await self.create(size_bytes), size_bytes)
        path = await self.connect(front)
        if generation:
            stamps.stamp(path, generation)
        return front

    async def snapshot(self, front: FrontSpec, snapshot: str | None = None) -> str:
        """A picture of the front's disk."""
        snapshot = snapshot or self.name()
        async with self.driver.turn():
            await self.driver.snapshot(snapshot, front.disk, front.volume_id)
        return snapshot

    async def clone_disk(self, snapshot: str, size_bytes: int, disk: str | None = None) -> str:
        """A writable copy of a snapshot, without a front."""
        disk = disk or self.name()
        async with self.driver.turn():
            await self.driver.clone(disk, snapshot, size_bytes)
        await self.complete(disk, size_bytes, source=snapshot)
        return disk

    async def clone(self, snapshot: str, size_bytes: int) -> FrontSpec:
        """A writable copy of a snapshot with its front: the way to read what a snapshot holds."""
        front = self.front(await self.clone_disk(snapshot, size_bytes), size_bytes)
        await self.connect(front)
        return front

    async def show(self, snapshot: str, size_bytes: int) -> FrontSpec:
        """A snapshot with a device of its own."""
        shown = replace(self.front(snapshot, size_bytes), is_read_only=True)
        await self.connect(shown)
        return shown

    async def hide(self, shown: FrontSpec) -> None:
        """Its device gone."""
        async with self.driver.turn():
            await self.driver.hide(shown.volume_id)

    async def grow(self, front: FrontSpec, size_bytes: int) -> FrontSpec:
        """A larger disk behind the same front, and the front with it."""
        grown = FrontSpec(front.volume_id, front.disk, size_bytes)
        async with self.driver.turn():
            await self.driver.grow(front.disk, size_bytes)
        await self.complete(front.disk, size_bytes, old_bytes=front.size_bytes)
        async with self.driver.turn():
            await self.driver.connect(grown)
        return grown

    async def swap(self, front: FrontSpec) -> None:
        """Another disk behind an existing front."""
        async with self.driver.turn():
            await self.driver.swap(front)

    async def erase(self, *disks: str) -> None:
        """Remove disks."""
        async with self.driver.turn():
            await self.driver.erase(disks)

    async def drop(self, front: FrontSpec) -> None:
        """Remove a volume: its front, then its disk, unless snapshots need it."""
        async with self.driver.turn():
            await self.driver.disconnect(front.volume_id)
            try:
                await self.driver.erase([front.disk])
            except StorageError as err:
                if not self.is_thick or "is the origin of" not in str(err):
                    raise

    async def revert(self, front: FrontSpec, snapshot: str, size_bytes: int) -> FrontSpec:
        """Give a volume the bytes of a snapshot of `size_bytes`, as the service does.

        Thick: what the volume held is not kept; see `keep` in the tests.
        """
        if not self.is_thick:
            disk = await self.clone_disk(snapshot, front.size_bytes)
            after = FrontSpec(front.volume_id, disk, front.size_bytes)
            await self.swap(after)
            return after
        driver = self.driver
        async with driver.turn():
            await driver.disconnect(front.volume_id)
            await driver.reserve_for_revert(front.disk, snapshot)
            await driver.begin_merge(front.disk, snapshot)
        await driver.merged(front.disk, Progress())
        async with driver.turn():
            await driver.end_merge(front.disk, snapshot)
        if size_bytes < front.size_bytes:
            await self.complete(front.disk, front.size_bytes, old_bytes=size_bytes)
        async with driver.turn():
            await driver.snapshot(snapshot, front.disk, None)
            await driver.connect(front)
        return front

    async def expect_snapshot(self, snapshot: str, size_bytes: int, generation: int) -> None:
        """Check that a snapshot holds one generation throughout."""
        stamps.expect(self.path(await self.clone(snapshot, size_bytes)), generation)

    async def clean(self) -> None:
        """Remove every front made through here and every disk of ours."""
        async with asyncio.timeout(CLEANING_S), self.driver.turn():
            for volume_id in self._volume_ids:
                await self.driver.disconnect(volume_id)
            self._volume_ids.clear()
            if disks := await self.driver.disks():
                await self.driver.erase(list(disks))


class FileStorage(Storage):
    """The sparse files."""

    def __init__(self, root: Path, make: type[FileDriver] = FileDriver) -> None:
        super().__init__(make(root))
        self._root, self._make = root, make

    async def apart(self, work: Callable[[], T]) -> T:
        """Between two steps of the driver, which freezes nobody else (see `FileDriver`)."""
        await asyncio.sleep(0)
        return work()

    async def make_foreign(self, disk: str) -> None:
        """A file without a tag."""
        path = self._root / "disks" / disk
        path.touch()
        os.truncate(path, FOREIGN_BYTES)
        stamps.stamp(path, FOREIGN_GENERATION)

    async def expect_foreign(self, disk: str) -> None:
        """See `Storage`."""
        stamps.expect(self._root / "disks" / disk, FOREIGN_GENERATION, 0, FOREIGN_BYTES)

    async def restart(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> None:
        """A second driver on the same directory."""
        self.driver = self._make(self._root)
        await self.driver.start(fronts, hidden)


class LvmStorage(Storage):
    """LVs, in the lab.

    `lvm` runs one LVM command by hand, as an operator would, on the driver's own VG.
    """

    def __init__(self, driver: StorageDriver, vg: str, lvm: Callable[..., None]) -> None:
        super().__init__(driver)
        self.vg, self.lvm = vg, lvm
        self._foreign: list[str] = []

    async def apart(self, work: Callable[[], T]) -> T:
        """In a thread: a front that is suspended holds the thread, never the driver."""
        return await asyncio.to_thread(work)

    async def make_foreign(self, disk: str) -> None:
        """An LV without our tag."""
        self._make_foreign(disk, f"{FOREIGN_BYTES}b")
        self._foreign.append(disk)
        stamps.stamp(self._foreign_path(disk), FOREIGN_GENERATION)

    async def expect_foreign(self, disk: str) -> None:
        """See `Storage`."""
        stamps.expect(self._foreign_path(disk), FOREIGN_GENERATION, 0, FOREIGN_BYTES)

    @abstractmethod
    def _make_foreign(self, disk: str, size: str) -> None:
        """Make an LV of the same kind as the driver's."""

    async def restart(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> None:
        """Start again: all the driver needs to know is in the kernel and in the VG."""
        await self.driver.start(fronts, hidden)

    async def clean(self) -> None:
        """See `Storage`; and the foreign disks."""
        await super().clean()
        there = [f"{self.vg}/{disk}" for disk in self._foreign if self._foreign_path(disk).exists()]
        self._foreign.clear()
        if there:
            self.lvm("lvremove", "-y", *there)

    def _foreign_path(self, disk: str) -> Path:
        """Where device-mapper puts an LV: hyphens of names are doubled."""
        return Path(f"/dev/mapper/{self.vg.replace('-', '--')}-{disk.replace('-', '--')}")


class ThinStorage(LvmStorage):
    """LVM thin volumes."""

    def __init__(self, driver: StorageDriver, vg: str, pool: str, lvm: Callable[..., None]) -> None:
        super().__init__(driver, vg, lvm)
        self._pool = pool

    def _make_foreign(self, disk: str, size: str) -> None:
        self.lvm("lvcreate", "-V", size, "--thinpool", self._pool, "-n", disk, self.vg)


class ThickStorage(LvmStorage):
    """Plain LVs with classic snapshots."""

    def _make_foreign(self, disk: str, size: str) -> None:
        self.lvm("lvcreate", "-y", "-L", size, "-n", disk, self.vg)
