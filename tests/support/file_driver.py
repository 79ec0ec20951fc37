"""The only fake of blockd: a storage class made of sparse files.

It passes the contract suite that the kernel's drivers pass, without root and without devices.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from blockd.domain.allocation import Allocation
from blockd.domain.backup import THIN_METADATA, VG_TEXT, MetadataPart, whole
from blockd.domain.effects import SideEffects
from blockd.domain.errors import InUse, StorageError
from blockd.domain.finding import Finding
from blockd.domain.group import Picture
from blockd.domain.inventory import FoundDisk, Inventory
from blockd.domain.units import GIB
from blockd.domain.volume import OpenDisk
from blockd.service.ports import FrontSpec
from blockd.storage.instant import InstantDisks
from blockd.storage.vg_queue import VgQueue
from tests.support.file_disks import data_ranges
from tests.support.file_fronts import FileFronts
from tests.support.file_pool import EXTENT_BYTES, FilePool, whole_extents

_WITHIN_TURN = frozenset(
    {"create", "snapshot", "still", "clone", "grow", "seal", "erase", "copy_space"}
    | {"revert_bytes", "reserve_for_revert", "begin_merge", "end_merge", "hide"}
)
_ANNOUNCED = _WITHIN_TURN - {"revert_bytes", "copy_space"} | {
    "connect",
    "disconnect",
    "swap",
    "complete",
}


class FileDriver(FileFronts, FilePool, InstantDisks):
    """`StorageDriver` over a directory: disks are sparse files, fronts are links to them.

    All state is in the directory, so a second driver on it is a restarted daemon:
    `disks/NAME` the bytes, `tags/NAME` the mark of what is ours, `dev/VOLUME` the fronts.

    A snapshot is one instant for every writer on the event loop, because the copy awaits nothing;
    writers in other threads are not held off.

    Attributes:
        fail_next: by method name, the error that its next call raises, once, changing nothing.
        gates: by method name, an event that every call waits for before it does anything.
        ailments: what `examine` finds, until it is mended.
        copy: the space of the catalog's copy.
        stands_still: the volumes whose fronts are suspended just now.
        remedied: errors that pass when `remedy` hears of them.
        trouble: set it when something was done to the files behind the driver's back.
    """

    def __init__(
        self,
        root: Path,
        *,
        storage_class: str = "sbs",
        capacity_bytes: int = 100 * GIB,
        effects: SideEffects | None = None,
    ) -> None:
        """`effects` is told of each method that changes something, before it does."""
        self.fail_next: dict[str, StorageError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.trouble = asyncio.Event()
        self.ailments: list[Finding] = []
        self.remedied: list[StorageError] = []
        self.stands_still: frozenset[str] = frozenset()
        FilePool.__init__(self, f"files/{root.name}", storage_class, capacity_bytes)
        FileFronts.__init__(self, root)
        self._effects = effects or SideEffects()
        self._queue = VgQueue(lambda _: None)
        self.copy = root / "copy"

    def turn(self, *, holds_another: bool = False) -> AbstractAsyncContextManager[None]:
        """See `StorageDriver`."""
        return self._queue.turn(holds_another=holds_another)

    async def create(self, disk: str, size_bytes: int) -> None:
        """See `StorageDriver`."""
        await self._enter("create")
        self._make(disk, size_bytes)

    async def snapshot(self, snapshot_disk: str, disk: str, volume_id: str | None) -> None:
        """See `StorageDriver`."""
        await self._enter("snapshot")
        if volume_id is not None and await self.disk_behind(volume_id) not in (None, disk):
            raise StorageError(f"the front of {volume_id} is not over {disk}")
        self._copy(snapshot_disk, disk, 0)
        self._disk_path(snapshot_disk).chmod(0o400)

    @asynccontextmanager
    async def still(self, volume_ids: Sequence[str]) -> AsyncIterator[None]:
        """See `StorageDriver`; nobody else runs until the snapshots are made."""
        await self._enter("still")
        self.stands_still = frozenset(volume_ids)
        try:
            yield
        finally:
            self.stands_still = frozenset()

    @asynccontextmanager
    async def taking(
        self, pictures: Sequence[Picture]
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """See `StorageDriver`."""

        async def take() -> None:
            if not self.stands_still.issuperset(picture.volume_id for picture in pictures):
                raise AssertionError("snapshots of fronts that are not suspended")
            for picture in pictures:
                if self._tag(picture.disk) is not None:  # as LVM does
                    raise StorageError(f"{picture.disk} already exists")
                await self.snapshot(picture.disk, picture.of_disk, picture.volume_id)

        yield take

    async def undo(self, pictures: Sequence[Picture]) -> bool:
        """See `StorageDriver`."""
        if self.stands_still:
            raise AssertionError("undo() while fronts are suspended")
        ours = self._ours()
        remains = [picture.disk for picture in pictures if picture.disk in ours]
        if remains:
            await self.erase(remains)
        return bool(remains)

    async def remedy(self, error: StorageError) -> bool:
        """See `StorageDriver`."""
        return error in self.remedied

    async def clone(self, disk: str, snapshot_disk: str, size_bytes: int) -> None:
        """See `StorageDriver`."""
        await self._enter("clone")
        self._copy(disk, snapshot_disk, size_bytes)

    async def grow(self, disk: str, size_bytes: int) -> None:
        """See `StorageDriver`. A front on it keeps its size: `connect` shows the new part."""
        await self._enter("grow")
        tag = self._need(disk)
        if size_bytes <= tag.size_bytes:
            return
        size_bytes = whole_extents(size_bytes)
        shown_bytes = tag.shown_bytes if self._is_behind_front(disk) else size_bytes
        self._show(disk, replace(tag, size_bytes=size_bytes, shown_bytes=shown_bytes))

    async def seal(self, disk: str) -> None:
        """See `StorageDriver`."""
        await self._enter("seal")
        self._need(disk)
        if self._is_behind_front(disk):
            raise StorageError(f"{disk} is behind a front")
        self._disk_path(disk).chmod(0o400)

    async def erase(self, disks: Sequence[str]) -> None:
        """See `StorageDriver`."""
        await self._enter("erase")
        for disk in disks:
            if self._tag(disk) is not None:
                self._remove(disk)

    @asynccontextmanager
    async def metadata(self) -> AsyncIterator[Sequence[MetadataPart]]:
        """See `StorageDriver`. `fail_next["thin_dump"]` breaks the thin part off."""
        async with self.turn():
            await self._enter("metadata")
            text = json.dumps(sorted(self._ours())).encode()
        parts = [MetadataPart(VG_TEXT, whole(text))]
        if not self.traits.is_thick:
            parts.append(MetadataPart(THIN_METADATA, self._mappings()))
        yield parts

    async def _mappings(self) -> AsyncGenerator[bytes, None]:
        yield b"<superblock>\n"
        if (error := self.fail_next.pop("thin_dump", None)) is not None:
            raise error
        yield b"</superblock>\n"

    @asynccontextmanager
    async def reading(self, disk: str) -> AsyncIterator[OpenDisk]:
        """See `StorageDriver`."""
        await self._enter("reading")
        tag = self._need(disk)
        yield OpenDisk(str(self._disk_path(disk)), tag.size_bytes)

    @asynccontextmanager
    async def writing(self, disk: str) -> AsyncIterator[OpenDisk]:
        """See `StorageDriver`."""
        await self._enter("writing")
        tag = self._need(disk)
        if self._is_behind_front(disk):
            raise StorageError(f"{disk} is behind a front")
        yield OpenDisk(str(self._disk_path(disk)), tag.size_bytes)

    async def allocation(self, disk: str, size_bytes: int) -> Allocation | None:
        """See `StorageDriver`; a file system's own blocks."""
        await self._enter("allocation")
        allocation = Allocation(size_bytes)
        with self._disk_path(disk).open("rb") as file:
            for offset, end in data_ranges(file.fileno()):
                allocation.add(offset, end - offset)
        return allocation

    async def start(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> Sequence[str]:
        """See `StorageDriver`. What cannot be as listed is left: the journal knows more of it."""
        del hidden  # a snapshot is a file of its own
        await self._enter("start")
        listed = {front.volume_id for front in fronts}
        for path in sorted(self._fronts.iterdir()):
            if path.name not in listed:
                with suppress(InUse):
                    await self.disconnect(path.name)
        problems = []
        for front in fronts:
            behind = await self.disk_behind(front.volume_id)
            if self._tag(front.disk) is None:
                problems.append(f"volume {front.volume_id}: {front.disk} is missing")
            elif behind in (None, front.disk):
                await self.connect(front)
        return problems

    async def amiss(self) -> None:
        """See `StorageDriver`: when a test says so."""
        await self.trouble.wait()
        self.trouble.clear()

    def problems(self) -> list[str]:
        """See `StorageDriver`."""
        return []

    async def disks(self) -> Mapping[str, int]:
        """See `StorageDriver`."""
        await self._enter("disks")
        return {disk: tag.size_bytes for disk, tag in self._ours().items()}

    async def examine(self) -> tuple[Inventory, list[Finding]]:
        """See `StorageDriver`: there are no devices; a test may say what is wrong (`ailments`)."""
        await self._enter("examine")
        return await self.inventory(), list(self.ailments)

    async def mend(self, finding: Finding) -> None:
        """See `StorageDriver`."""
        await self._enter("mend")
        about = finding.kind, finding.subject
        self.ailments = [one for one in self.ailments if (one.kind, one.subject) != about]

    async def inventory(self) -> Inventory:
        """See `StorageDriver`."""
        await self._enter("inventory")
        ours = self._ours()
        disks = {}
        for name, tag in ours.items():
            origin = tag.origin or tag.source
            disks[name] = FoundDisk(
                name,
                tag.size_bytes,
                bool(self._disk_path(name).stat().st_mode & 0o200),
                origin if origin in ours else None,
            )
        fronts = {}
        for path in self._fronts.iterdir():
            disk = path.readlink().name
            is_sealed = disk in disks and not disks[disk].is_writable
            shown_bytes = self._need(disk).shown_bytes
            fronts[path.name] = FrontSpec(path.name, disk, shown_bytes, is_sealed)
        return Inventory(EXTENT_BYTES, disks, fronts)

    async def copy_space(self, size_bytes: int) -> OpenDisk:
        """See `StorageDriver`."""
        await self._enter("copy_space")
        self.copy.touch(mode=0o600)
        size_bytes = max(whole_extents(size_bytes), self.copy.stat().st_size)
        os.truncate(self.copy, size_bytes)
        return OpenDisk(str(self.copy), size_bytes)

    async def _enter(self, method: str) -> None:
        """Where tests hold an operation or make it fail; and where a missing turn shows."""
        if method in _WITHIN_TURN and not self._queue.is_held:
            raise AssertionError(f"{method}() was called outside turn()")
        if gate := self.gates.get(method):
            await gate.wait()
        if error := self.fail_next.pop(method, None):
            raise error
        if method in _ANNOUNCED:
            self._effects.before(f"file {method}")
