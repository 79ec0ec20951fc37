"""Reverting a thick volume: the kernel copies back what a snapshot has kept, and no more.

LVM's own way ends in a process that polls until the merge is done, for hours maybe, beside our
queue. So the merge is only marked in LVM's metadata, which LVM does when the origin is open; then
one refresh has the kernel merge by itself, and when it is done one command has LVM forget it
(docs/decisions/0010-thick.md).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from blockd.domain.errors import StorageError
from blockd.domain.transfer import Progress
from blockd.host.uevents import wait_for_node
from blockd.storage.cow_sizes import CowSizes
from blockd.storage.cow_status import CowStatus
from blockd.storage.cow_watch import CowWatch
from blockd.storage.dm import DeviceInfo, DeviceMapper
from blockd.storage.free_extents import FreeExtents
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_report import LogicalVolume

#: The kernel raises no event when a merge is done (dm-snap.c, merge_shutdown).
_LEAST_WAIT_S, _MOST_WAIT_S = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class _Overwriting:
    """What a merge writes: chunks of the snapshot's, wherever they lie, and zeros behind its end.

    Each may be in a chunk of its own of a sibling whose chunks are larger.
    """

    chunks: int
    chunk_bytes: int
    zero_bytes: int

    def kept_bytes(self, sizes: CowSizes) -> int:
        """What a sibling's store keeps of what was there."""
        zeros = self.zero_bytes + sizes.chunk_bytes if self.zero_bytes else 0
        return self.chunks * max(self.chunk_bytes, sizes.chunk_bytes) + zeros


class ThickRevert:
    """The steps of a revert, each idempotent."""

    def __init__(
        self,
        lvm: LvmCommands,
        mapper: DeviceMapper,
        info: Callable[[str], DeviceInfo | None],
        found: Callable[[str], Awaitable[LogicalVolume | None]],
        watch: CowWatch,
        sizes: CowSizes,
        free: FreeExtents,
    ) -> None:
        """`info` is the device of a disk, `found` its LV."""
        self._lvm, self._mapper, self._info, self._found = lvm, mapper, info, found
        self._watch, self._sizes, self._free = watch, sizes, free

    # room

    async def needed_bytes(self, disk: str, snapshot: str, *, keep: bool) -> int:
        """See the port, `revert_bytes`."""
        needed = await self._growths(disk, snapshot)
        total_bytes = sum(size - had for size, had in needed.values())
        origin_bytes = self._length(disk)
        # When it is merged its store is free again, and it is taken again with a new one.
        _, status = await self._ask(snapshot)
        total_bytes += max(self._sizes.first(origin_bytes) - status.size_bytes, 0)
        if keep:
            written = (await self._overwriting(disk, snapshot)).kept_bytes(self._sizes)
            total_bytes += max(
                self._sizes.first(origin_bytes), self._sizes.with_more(0, written, origin_bytes)
            )
        return total_bytes

    async def reserve(self, disk: str, snapshot: str) -> None:
        """See the port, `reserve_for_revert`."""
        if self._info(snapshot) is None or self._kind(disk) == "snapshot-merge":
            # Merged it cannot be, as that has not begun: who takes it for merged would show the
            # volume's own bytes as the snapshot's.
            raise StorageError(f"there is no snapshot {snapshot} to revert {disk} to")
        for sibling, (size_bytes, _) in (await self._growths(disk, snapshot)).items():
            await self.extend_store(sibling, size_bytes)

    async def extend_store(self, snapshot: str, size_bytes: int) -> None:
        """To at least so many bytes. LVM ends with 0 even for a snapshot that is lost."""
        _, before = await self._ask(snapshot)
        if not before.fault and before.size_bytes < size_bytes:
            try:
                async with self._free.taking(self._free.extents(size_bytes) - before.size_bytes):
                    await self._lvm.extend(snapshot, size_bytes)
            except LvmFailed:
                _, after = await self._ask(snapshot)
                if after.fault or after.size_bytes < size_bytes:  # what the kernel has counts
                    raise
        _, after = await self._ask(snapshot)
        if after.fault:
            raise StorageError(f"snapshot {snapshot} is lost: the kernel says {after.fault}")
        if after.size_bytes < size_bytes:
            raise StorageError(f"LVM reported that the store of {snapshot} has grown; it has not")

    async def _growths(self, disk: str, snapshot: str) -> dict[str, tuple[int, int]]:
        """(needed size, size now) of the stores that the merge could overflow, by snapshot."""
        overwriting = await self._overwriting(disk, snapshot)
        growths = {}
        for sibling in self._siblings(disk, snapshot):
            origin_bytes, status = await self._ask(sibling)
            if status.fault:
                continue
            sizes = self._sizes_of(sibling)
            written = overwriting.kept_bytes(sizes)
            needed = sizes.with_more(status.used_bytes, written, origin_bytes)
            if needed > status.size_bytes:
                growths[sibling] = (needed, status.size_bytes)
        return growths

    async def _overwriting(self, disk: str, snapshot: str) -> _Overwriting:
        pictured_bytes, status = await self._ask(snapshot)
        if status.fault:
            raise StorageError(f"snapshot {snapshot} is lost: the kernel says {status.fault}")
        chunk_bytes = self._sizes_of(snapshot).chunk_bytes
        return _Overwriting(
            -(-status.data_bytes // chunk_bytes),
            chunk_bytes,
            max(self._length(disk) - pictured_bytes, 0),
        )

    def _siblings(self, disk: str, snapshot: str) -> list[str]:
        """Those that lie over the same origin, which is told by the kernel's tables."""
        return [
            other
            for other in self._watch.snapshots()
            if other != snapshot and self._real_of(other) == self._real_of(disk)
        ]

    # the merge

    async def begin(self, disk: str, snapshot: str) -> None:
        """See the port, `begin_merge`. The disk is active."""
        if self._kind(disk) == "snapshot-merge":
            self._watch.forget(snapshot)
            return
        info, picture = self._info(disk), self._info(snapshot)
        if info is None or info.open_count:
            raise StorageError(f"{disk} is open, so nothing can be merged into it")
        if picture is None:
            found = await self._found(snapshot)
            if found is None:
                return  # it is merged
        elif picture.open_count:
            raise StorageError(f"snapshot {snapshot} is open: it is being read")
        try:
            await self._mark(info, snapshot)
        except LvmFailed:
            found = await self._found(snapshot)
            if found is None or not found.is_merging:
                if picture is not None and snapshot not in self._watch:
                    # Given up meanwhile: told again, as a revert in *merging* is told of no loss.
                    await self._watch.add(snapshot, picture.uuid)
                raise
        # Not before: its bytes are needed until the mark is there, whatever comes instead of it.
        # Nor later: the kernel makes it invalid when the merge takes it over, which is no loss
        # (Linux, dm-snap.c, __handover_exceptions).
        self._watch.forget(snapshot)
        await self._lvm.refresh(disk)
        if self._kind(disk) != "snapshot-merge":
            raise StorageError(f"LVM reported a merge into {disk}, but the kernel does not merge")

    async def _mark(self, info: DeviceInfo, snapshot: str) -> None:
        node = Path(f"/dev/dm-{info.minor}")
        await wait_for_node(node)
        descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._lvm.mark_for_merging(snapshot, descriptor)
        finally:
            os.close(descriptor)

    async def merged(self, disk: str, progress: Progress) -> None:
        """See the port."""
        left_bytes: int | None = None
        while self._kind(disk) == "snapshot-merge":
            _, status = await self._ask(disk)
            if status.fault:
                raise StorageError(f"merging into {disk}: the kernel says {status.fault}")
            if left_bytes is None:
                progress.total_bytes = progress.done_bytes + status.data_bytes
            else:
                progress.add(left_bytes - status.data_bytes)
            left_bytes = status.data_bytes
            if not left_bytes:
                return
            eta_s = progress.eta_s
            wait_s = _LEAST_WAIT_S if eta_s is None else eta_s / 4
            await asyncio.sleep(min(max(wait_s, _LEAST_WAIT_S), _MOST_WAIT_S))

    async def end(self, disk: str, snapshot: str) -> None:
        """See the port, `end_merge`."""
        if self._kind(disk) != "snapshot-merge":
            found = await self._found(snapshot)
            if found is not None and found.is_merging:
                raise StorageError(f"the merge of {snapshot} into {disk} has not begun")
            return
        _, status = await self._ask(disk)
        if status.fault or status.data_bytes:
            raise StorageError(f"the merge into {disk} is not done: {status}")
        async with self._free.taking(-status.size_bytes):
            await self._lvm.forget_merged(disk)
        if self._kind(disk) == "snapshot-merge":
            raise StorageError(f"LVM reported the end of the merge into {disk}, the kernel has it")
        self._watch.look_now()

    # the kernel

    async def _ask(self, disk: str) -> tuple[int, CowStatus]:
        info = self._info(disk)
        if info is None:
            raise StorageError(f"snapshot {disk} is not active")
        return await self._watch.ask(info.uuid)

    def _sizes_of(self, snapshot: str) -> CowSizes:
        info = self._info(snapshot)
        if info is None:
            raise StorageError(f"snapshot {snapshot} is not active")
        return self._watch.sizes_of(info.uuid)

    def _kind(self, disk: str) -> str:
        info = self._info(disk)
        return "" if info is None else self._mapper.table(info.uuid)[0].kind

    def _length(self, disk: str) -> int:
        info = self._info(disk)
        if info is None:
            raise StorageError(f"{disk} is not active")
        return sum(target.length_sectors for target in self._mapper.table(info.uuid)) * 512

    def _real_of(self, disk: str) -> str | None:
        """`major:minor` of what lies under an origin and all of its snapshots."""
        info = self._info(disk)
        return None if info is None else self._mapper.table(info.uuid)[0].params.split()[0]
