"""The fake of a thick class: the directory of sparse files, with what is awkward about thick LVs.

New space holds old bytes until `complete` has written over them; whoever shows, snapshots or opens
it before finds them there. Snapshots need their origin, reverts are merges, and room is counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from blockd.domain.allocation import Allocation
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StorageError
from blockd.domain.inventory import FoundDisk, Inventory
from blockd.domain.pool import ClassTraits, PoolUse
from blockd.domain.transfer import Progress
from blockd.domain.units import GIB
from blockd.domain.volume import OpenDisk
from blockd.service.ports import FrontSpec
from tests.support.file_disks import Tag, copy_range
from tests.support.file_driver import FileDriver
from tests.support.file_pool import whole_extents

_STORE_PERCENT = 10
_OLD_BYTES = bytes([0xDB]) * 512
#: Old bytes lie at so many places: enough to be found, and next to nothing for a disk of terabytes.
_OLD_PLACES = 16


class ThickFileDriver(FileDriver):
    """`StorageDriver` of a thick class.

    A snapshot's file is a copy, but it cannot be read without its origin's.

    Attributes:
        adds_bytes: room that somebody added to the group, and nobody has noticed yet.
    """

    def __init__(
        self,
        root: Path,
        *,
        storage_class: str = "bssd",
        capacity_bytes: int = 100 * GIB,
        effects: SideEffects | None = None,
        max_snapshots: int | None = 4,
        reserve_bytes: int = 0,
    ) -> None:
        super().__init__(
            root, storage_class=storage_class, capacity_bytes=capacity_bytes, effects=effects
        )
        self.traits = ClassTraits(True, max_snapshots, reserve_bytes)
        self._losses: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._waited_for: set[str] = set()
        self.adds_bytes = 0

    # space and bytes

    async def create(self, disk: str, size_bytes: int) -> None:
        """See `StorageDriver`."""
        await self._enter("create")
        self._make_old(disk, size_bytes)

    async def clone(self, disk: str, snapshot_disk: str, size_bytes: int) -> None:
        """See `StorageDriver`; `complete` copies."""
        await self._enter("clone")
        self._need_readable(snapshot_disk)
        self._make_old(disk, size_bytes)

    async def grow(self, disk: str, size_bytes: int) -> None:
        """See `StorageDriver`."""
        tag = self._need(disk)
        self._take(whole_extents(size_bytes) - tag.size_bytes)
        await super().grow(disk, size_bytes)
        grown = self._need(disk)
        if grown.size_bytes > tag.size_bytes and grown.old_from is None:
            self._mark(disk, replace(grown, old_from=tag.size_bytes))

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
        """See `StorageDriver`."""
        await self._enter("complete")
        tag = self._need(disk)
        if size_bytes > tag.size_bytes:
            raise StorageError(f"{disk} has {tag.size_bytes} bytes, not {size_bytes}")
        progress.total_bytes = tag.size_bytes - old_bytes
        path = self._disk_path(disk)
        for half in (1, 2):
            self._effects.before(f"file complete, half {half}")
            if half == 1:
                os.truncate(path, min(old_bytes, tag.shown_bytes))
                os.truncate(path, tag.shown_bytes)
            elif source is not None:
                length = source_bytes or self._need_readable(source).size_bytes
                self._need_readable(source)
                copy_range(self._disk_path(source), path, old_bytes, length)
            progress.add(progress.total_bytes // 2)
            await asyncio.sleep(0)
        tag = self._need(disk)
        if tag.old_from is not None and old_bytes <= tag.old_from:
            self._mark(disk, replace(tag, old_from=None))

    def volume_bytes(self, size_bytes: int) -> int:
        """See `StorageDriver`."""
        return whole_extents(size_bytes)

    def snapshot_bytes(self, size_bytes: int) -> int:
        """See `StorageDriver`."""
        return whole_extents(size_bytes * _STORE_PERCENT // 100)

    async def recount(self) -> None:
        """See `StorageDriver`: what was put into `adds_bytes` is noticed now."""
        await self._enter("recount")
        async with self.turn():
            self.capacity_bytes += self.adds_bytes
            self.adds_bytes = 0

    async def pool(self) -> PoolUse:
        """See `StorageDriver`."""
        await self._enter("pool")
        free_bytes = self._free_bytes()
        return PoolUse(
            storage_class=self._storage_class,
            name=self._name,
            size_bytes=self.capacity_bytes,
            used_bytes=self.capacity_bytes - free_bytes,
            metadata_size_bytes=0,
            metadata_used_bytes=0,
            mode="rw",
            needs_check=False,
            free_bytes=free_bytes,
        )

    async def extend_pool(self, size_bytes: int, metadata_bytes: int) -> None:
        """See `StorageDriver`."""
        raise StorageError(f"{self._name} has no pool: {size_bytes + metadata_bytes}")

    async def repair_pool(self) -> None:
        """See `StorageDriver`."""
        raise StorageError(f"{self._name} has no pool")

    # snapshots

    async def snapshot(self, snapshot_disk: str, disk: str, volume_id: str | None) -> None:
        """See `StorageDriver`."""
        origin = self._need(disk)
        if origin.merging is not None:
            raise StorageError(f"{disk} is being merged")
        self._take(self.snapshot_bytes(origin.size_bytes))
        await super().snapshot(snapshot_disk, disk, volume_id)
        self._mark(
            snapshot_disk, replace(self._need(snapshot_disk), origin=disk, old_from=origin.old_from)
        )

    async def erase(self, disks: Sequence[str]) -> None:
        """See `StorageDriver`."""
        for snapshot_disk, tag in self._ours().items():
            if tag.origin in disks and snapshot_disk not in disks:
                raise StorageError(f"{tag.origin} is the origin of {snapshot_disk}")
        await super().erase(disks)

    @asynccontextmanager
    async def reading(self, disk: str) -> AsyncIterator[OpenDisk]:
        """See `StorageDriver`."""
        self._need_readable(disk)
        async with super().reading(disk) as opened:
            yield opened

    @asynccontextmanager
    async def writing(self, disk: str) -> AsyncIterator[OpenDisk]:
        """See `StorageDriver`."""
        self._show_old_bytes(disk)
        async with super().writing(disk) as opened:
            yield opened

    async def allocation(self, disk: str, size_bytes: int) -> Allocation | None:
        """Nothing tells."""
        del size_bytes
        await self._enter("allocation")
        self._need(disk)
        return None

    def lose(self, snapshot_disk: str, reason: str) -> None:
        """Overflow a snapshot's store, as the kernel does it."""
        self._mark(snapshot_disk, replace(self._need(snapshot_disk), lost=reason))
        self._losses.put_nowait((snapshot_disk, reason))

    async def losses(self) -> AsyncIterator[tuple[str, str]]:
        """See `StorageDriver`."""
        for disk, tag in self._ours().items():
            if tag.lost is not None and self._losses.empty():
                yield disk, tag.lost
        while True:
            yield await self._losses.get()

    # reverts

    async def revert_bytes(self, disk: str, snapshot_disk: str, *, keep: bool) -> int:
        """See `StorageDriver`: every store must be able to take all of the disk."""
        await self._enter("revert_bytes")
        had_bytes = self.snapshot_bytes(self._need_readable(snapshot_disk).size_bytes)
        size_bytes = self._need(disk).size_bytes
        siblings = len(self._snapshots_of(disk)) - 1
        store_bytes = self.snapshot_bytes(size_bytes)
        again_bytes = max(store_bytes - had_bytes, 0)
        return siblings * size_bytes + again_bytes + (store_bytes if keep else 0)

    async def reserve_for_revert(self, disk: str, snapshot_disk: str) -> None:
        """See `StorageDriver`."""
        await self._enter("reserve_for_revert")
        self._need_readable(snapshot_disk)
        self._need(disk)

    async def begin_merge(self, disk: str, snapshot_disk: str) -> None:
        """See `StorageDriver`. Behind the snapshot's end the disk stays as it is."""
        await self._enter("begin_merge")
        tag = self._need(disk)
        if tag.merging is not None or self._tag(snapshot_disk) is None:
            return
        if self._is_behind_front(disk):
            raise StorageError(f"{disk} is behind a front")
        self._need_readable(snapshot_disk)
        path, merged = self._disk_path(disk), self._root / "merged"
        merged.touch(mode=0o600)
        os.truncate(merged, tag.shown_bytes)
        length = self._need(snapshot_disk).size_bytes
        copy_range(self._disk_path(snapshot_disk), merged, 0, length)
        copy_range(path, merged, length, tag.shown_bytes)
        merged.replace(path)
        self._remove(snapshot_disk)
        self._mark(disk, replace(tag, merging=snapshot_disk))

    async def merged(self, disk: str, progress: Progress) -> None:
        """See `StorageDriver`."""
        tag = self._need(disk)
        progress.total_bytes = tag.size_bytes
        await self._enter("merged")
        progress.add(tag.size_bytes)
        self._waited_for.add(disk)

    async def end_merge(self, disk: str, snapshot_disk: str) -> None:
        """See `StorageDriver`."""
        del snapshot_disk
        await self._enter("end_merge")
        tag = self._need(disk)
        if tag.merging is not None and disk not in self._waited_for:
            raise StorageError(f"{disk} is still being merged")
        self._waited_for.discard(disk)
        self._mark(disk, replace(tag, merging=None))

    async def inventory(self) -> Inventory:
        """See `StorageDriver`."""
        found = await super().inventory()
        merging = {
            tag.merging: FoundDisk(tag.merging, tag.size_bytes, False, disk, is_merging=True)
            for disk, tag in self._ours().items()
            if tag.merging is not None
        }
        return replace(found, disks={**found.disks, **merging})

    # fronts

    async def connect(self, front: FrontSpec) -> None:
        """See `StorageDriver`; and nobody may see a disk before all of it is merged."""
        if self._need(front.disk).merging is not None:
            raise AssertionError(f"connect() of {front.disk}, which is being merged")
        await super().connect(front)
        self._show_old_bytes(front.disk)

    async def start(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> Sequence[str]:
        """See `StorageDriver`; and every origin must have been spoken of."""
        known = {front.disk for front in fronts} | set(hidden)
        self.never_activated = {
            tag.origin for tag in self._ours().values() if tag.origin is not None
        } - known
        return await super().start(fronts)

    def _make_old(self, disk: str, size_bytes: int) -> None:
        present = self._tag(disk)
        taken = 0 if present is None else present.size_bytes
        self._take(whole_extents(size_bytes) - taken)
        self._make(disk, size_bytes)
        self._mark(disk, replace(self._need(disk), old_from=0))

    def _take(self, size_bytes: int) -> None:
        free_bytes = self._free_bytes()
        if size_bytes > free_bytes:
            raise StorageError(f"insufficient free space: {free_bytes} bytes")

    def _free_bytes(self) -> int:
        taken = sum(
            self.volume_bytes(tag.size_bytes)
            if tag.origin is None
            else self.snapshot_bytes(tag.size_bytes)
            for tag in self._ours().values()
        )
        return self.capacity_bytes - taken

    def _snapshots_of(self, disk: str) -> list[str]:
        return [name for name, tag in self._ours().items() if tag.origin == disk]

    def _need_readable(self, disk: str) -> Tag:
        tag = self._need(disk)
        if tag.lost is not None:
            raise StorageError(f"{disk}: Input/output error")
        if tag.origin is not None:
            self._need(tag.origin)
        self._show_old_bytes(disk)
        return tag

    def _show_old_bytes(self, disk: str) -> None:
        """Put old bytes where nothing has been written over them yet."""
        tag = self._need(disk)
        if tag.old_from is None or tag.old_from >= tag.shown_bytes:
            return
        path = self._disk_path(disk)
        mode = path.stat().st_mode
        path.chmod(0o600)
        with path.open("r+b") as file:
            step = max((tag.shown_bytes - tag.old_from) // _OLD_PLACES // 512, 1) * 512
            places = [*range(tag.old_from, tag.shown_bytes, step), tag.shown_bytes - 512]
            for offset in places:
                file.seek(offset)
                file.write(_OLD_BYTES)
        path.chmod(mode)
