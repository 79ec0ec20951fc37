"""Where a plain QCOW2 image keeps its disk's data, by its own tables, none of which is believed.

Plain are version 2 and 3 with clusters that are data, zeros or nothing. Whatever else there is
(packed clusters, extended L2 entries, two places of the disk in one cluster, entries that QEMU
would refuse or mend, snapshots, bitmaps) is `NotPlain`, and left to qemu-img: so nothing here needs
to be clever, and no image becomes another disk than qemu-img would make of it, or one at all that
qemu-img would refuse.

Source: QEMU, docs/interop/qcow2.txt; block/qcow2-cluster.c for what it does with odd entries.
"""

from __future__ import annotations

import asyncio
import struct
from array import array
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise
from typing import Final

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.units import MIB, SECTOR_BYTES
from blockd.transfer.digest import is_zero
from blockd.transfer.nbd import Buffer
from blockd.transfer.qcow2_header import ImageHeader
from blockd.transfer.qcow2_layout import COPIED

#: Half a million take 12 MiB; a disk of 1 TiB in pieces of 2 MiB has as many.
MOST_EXTENTS: Final = 512 * 1024
#: What may lie between data that were read and are not in their turn yet: see `most_held_bytes`.
MOST_HELD_BYTES: Final = 32 * MIB
_HELD_BYTES_PER_CLUSTER, _HELD_BYTES_PER_EXTENT = 32, 256

#: L1 tables are read in no larger pieces, and L2 tables, but for those that are larger themselves;
#: such as lie close to each other come together.
_L1_PIECE_BYTES: Final = 64 * 1024
_MOST_GET_BYTES: Final = MIB
_GAP_BYTES: Final = 64 * 1024
#: So much is looked at in a millisecond: then others have their turn.
_LOOK_BYTES: Final = 16 * 1024
_SORT_AT_ONCE: Final = 16 * 1024
#: What tables may cost, each question counted as so many bytes: half the object, and this.
_GET_COSTS_BYTES: Final = 128 * 1024
_MORE_COSTS_BYTES: Final = 64 * MIB

_ZERO: Final = 1
_OFFSETS: Final = 0x00FF_FFFF_FFFF_FE00

Fetch = Callable[[int, int], Awaitable[Buffer]]


class NotPlain(Exception):
    """The image is for qemu-img; says why."""


@dataclass(frozen=True, slots=True)
class Extent:
    """So many bytes in a row, in the object and on the disk."""

    object_offset: int
    disk_offset: int
    length: int

    @property
    def object_end(self) -> int:
        """Where it ends in the object."""
        return self.object_offset + self.length


class Extents:
    """Where the data of an image lie: 24 bytes for each of its `Extent`s, no more."""

    def __init__(self, cluster_bytes: int, size_bytes: int) -> None:
        """None at first, of a disk of `size_bytes`."""
        self.cluster_bytes, self.size_bytes = cluster_bytes, size_bytes
        self._in_object, self._on_disk = array("Q"), array("Q")  # in clusters
        self._counts = array("L")
        self._order: array[int] | None = None  # by place in the object; None: as they are

    def add(self, in_object: int, on_disk: int, count: int) -> None:
        """Clusters in a row, behind those before on the disk.

        Raises:
            NotPlain: they are too many to be kept.
        """
        if self._counts:
            last = self._counts[-1]
            if (self._in_object[-1] + last, self._on_disk[-1] + last) == (in_object, on_disk):
                self._counts[-1] += count
                return
            if len(self._counts) == MOST_EXTENTS:
                raise NotPlain("its data lie in too many pieces")
        self._in_object.append(in_object)
        self._on_disk.append(on_disk)
        self._counts.append(count)

    def arrange(self) -> None:
        """After the last `add`. Meant for a thread: it may take a second.

        Raises:
            NotPlain: they overlap, or their order takes too much memory to follow.
        """
        ends = map(int.__add__, self._in_object, self._counts)
        if all(end <= begin for end, begin in zip(ends, self._in_object[1:], strict=False)):
            return
        # In pieces: nobody else runs while one is sorted.
        place, count = self._in_object.__getitem__, len(self._counts)
        pieces = (
            sorted(range(at, min(at + _SORT_AT_ONCE, count)), key=place)
            for at in range(0, count, _SORT_AT_ONCE)
        )
        order = array("L", merge(*pieces, key=place))
        for before, after in pairwise(order):
            if self._in_object[before] + self._counts[before] > self._in_object[after]:
                raise NotPlain("two clusters of its disk lie in one place")
        self._order = order
        if self.cluster_bytes < CLUSTER_BYTES:
            raise NotPlain("its small clusters lie in no order")
        if self.most_held_bytes() > MOST_HELD_BYTES:
            raise NotPlain("its clusters lie in an order that is too far from its disk's")

    @property
    def is_ascending(self) -> bool:
        """Whether they lie in the object in the order of the disk."""
        return self._order is None

    def most_held_bytes(self) -> int:
        """Memory for sums of clusters whose turn has not come, who reads in the object's order."""
        is_read = bytearray(len(self._counts))
        turn = held_clusters = held_extents = most = 0
        for number in self._order or ():
            is_read[number] = 1
            held_clusters += self._counts[number]
            held_extents += 1
            while turn < len(is_read) and is_read[turn]:
                held_clusters -= self._counts[turn]
                held_extents -= 1
                turn += 1
            sums = held_clusters * self.cluster_bytes // CLUSTER_BYTES * _HELD_BYTES_PER_CLUSTER
            most = max(most, sums + held_extents * _HELD_BYTES_PER_EXTENT)
        return most

    def __len__(self) -> int:
        return len(self._counts)

    def in_object_order(self) -> Iterator[Extent]:
        """All, as they lie in the object."""
        return map(self._extent, range(len(self)) if self._order is None else self._order)

    def in_disk_order(self) -> Iterator[Extent]:
        """All, as they lie on the disk."""
        return map(self._extent, range(len(self)))

    def _extent(self, number: int) -> Extent:
        on_disk = self._on_disk[number] * self.cluster_bytes
        length = min(self._counts[number] * self.cluster_bytes, self.size_bytes - on_disk)
        return Extent(self._in_object[number] * self.cluster_bytes, on_disk, length)


async def read_extents(
    header: ImageHeader, object_bytes: int, fetch: Fetch, *, ahead: int
) -> Extents:
    """Read and check the tables, in pieces.

    Args:
        fetch: bytes of the object: offset, length.
        ahead: so many questions are asked at once.

    Raises:
        NotPlain: it is no plain image.
        Exception: what `fetch` raises.
    """
    if header.unchecked:
        raise NotPlain(header.unchecked)
    if header.has_extended_l2:
        raise NotPlain("it has extended L2 entries")
    if header.size_bytes % SECTOR_BYTES:  # QEMU leaves out what is no whole sector
        raise NotPlain("its disk ends within a sector")
    tables = _Tables(header, object_bytes, fetch, ahead)
    extents = Extents(header.cluster_bytes, header.size_bytes)
    entries = _Entries(header, object_bytes)
    async with aclosing(tables.l2()) as pieces:
        async for first, piece in pieces:
            entries.add_to(extents, first, piece)
            await asyncio.sleep(0)
    await asyncio.to_thread(extents.arrange)
    return extents


class _Tables:
    """Reads L1 and L2 tables."""

    def __init__(self, header: ImageHeader, object_bytes: int, fetch: Fetch, ahead: int) -> None:
        self._header, self._object_bytes, self._fetch = header, object_bytes, fetch
        self._ahead = ahead
        self._may_cost_bytes = object_bytes // 2 + _MORE_COSTS_BYTES
        clusters = -(-header.size_bytes // header.cluster_bytes)
        self._l2_entries = header.cluster_bytes // 8
        self._l1_entries = -(-clusters // self._l2_entries)

    async def l2(self) -> AsyncGenerator[tuple[int, memoryview], None]:
        """(the disk's cluster that its first entry is about, entries), ascending."""
        table_bytes = self._header.cluster_bytes
        waiting: deque[tuple[list[tuple[int, int]], int, asyncio.Task[Buffer]]] = deque()

        async def oldest() -> Iterator[tuple[int, memoryview]]:
            group, begin, task = waiting.popleft()
            return self._pieces(group, begin, memoryview(await task))

        try:
            async with aclosing(self._groups()) as groups:
                async for group in groups:
                    begin, end = group[0][1], group[-1][1] + table_bytes
                    waiting.append((group, begin, self._task(begin, end - begin)))
                    if len(waiting) > self._ahead:
                        for piece in await oldest():
                            yield piece
            while waiting:
                for piece in await oldest():
                    yield piece
        finally:
            for _, _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, _, task in waiting), return_exceptions=True)

    def _task(self, offset: int, length: int) -> asyncio.Task[Buffer]:
        async def get() -> Buffer:
            return await self._get(offset, length)

        return asyncio.create_task(get(), name="tables")

    def _pieces(
        self, group: list[tuple[int, int]], begin: int, found: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        """The entries of the tables in one answer, whose first byte is at `begin`."""
        table_bytes = self._header.cluster_bytes
        for number, offset in group:
            for at in range(0, table_bytes, _LOOK_BYTES):
                piece = found[offset - begin + at :][: min(_LOOK_BYTES, table_bytes - at)]
                yield number * self._l2_entries + at // 8, piece

    async def _groups(self) -> AsyncGenerator[list[tuple[int, int]], None]:
        """(number, offset) of L2 tables, as many as are asked for at once."""
        table_bytes = self._header.cluster_bytes
        group: list[tuple[int, int]] = []
        async for number, offset in self._l1():
            if group:
                gap_bytes = offset - group[-1][1] - table_bytes
                length = offset + table_bytes - group[0][1]
                if not 0 <= gap_bytes <= _GAP_BYTES or length > _MOST_GET_BYTES:
                    yield group
                    group = []
            group.append((number, offset))
        if group:
            yield group

    async def _l1(self) -> AsyncIterator[tuple[int, int]]:
        """(number, offset) of each L2 table that there is."""
        table_bytes = self._header.cluster_bytes
        allowed = COPIED | _OFFSETS & -table_bytes
        for first in range(0, self._l1_entries, _L1_PIECE_BYTES // 8):
            count = min(_L1_PIECE_BYTES // 8, self._l1_entries - first)
            piece = await self._get(self._header.l1_offset + first * 8, count * 8)
            for number, entry in enumerate(struct.unpack(f">{count}Q", piece), first):
                if entry == 0:
                    continue
                offset = entry & ~COPIED
                if entry & ~allowed or offset == 0:
                    raise NotPlain(f"entry {number} of its L1 table is {entry:#x}")
                yield number, offset

    async def _get(self, offset: int, length: int) -> Buffer:
        if offset + length > self._object_bytes:
            raise NotPlain(f"its tables reach to {offset + length}, behind the object's end")
        self._may_cost_bytes -= length + _GET_COSTS_BYTES
        if self._may_cost_bytes < 0:
            raise NotPlain("its tables are too many for its data")
        return await self._fetch(offset, length)


class _Entries:
    """What L2 entries mean."""

    def __init__(self, header: ImageHeader, object_bytes: int) -> None:
        self._cluster_bytes, self._object_bytes = header.cluster_bytes, object_bytes
        self._clusters = -(-header.size_bytes // header.cluster_bytes)
        self._allowed = COPIED | _OFFSETS & -header.cluster_bytes
        self._zero = _ZERO if header.version == 3 else 0

    def add_to(self, extents: Extents, first: int, piece: memoryview) -> None:
        """Entries in a row, the first one about the disk's cluster `first`.

        Raises:
            NotPlain: one of them is none that may be.
        """
        count = min(len(piece) // 8, self._clusters - first)  # behind them: a saved machine
        if count <= 0 or is_zero(piece[: count * 8]):
            return
        step, inside = self._cluster_bytes, self._object_bytes
        begin = first_of_run = run = 0
        for cluster, entry in enumerate(struct.unpack_from(f">{count}Q", piece), first):
            if not entry:
                continue
            # Most go on with the one before.
            offset = entry & ~COPIED
            if offset == begin + run * step < inside and cluster == first_of_run + run > first:
                run += 1
                continue
            if self._is_hole(cluster, entry):
                continue
            if run:
                extents.add(begin // step, first_of_run, run)
            begin, first_of_run, run = offset, cluster, 1
        if run:
            extents.add(begin // step, first_of_run, run)

    def _is_hole(self, cluster: int, entry: int) -> bool:
        """Whether the cluster reads as zeros; checks all that there is to an entry."""
        offset = entry & ~(COPIED | self._zero)
        if offset & ~self._allowed:
            raise NotPlain(f"the entry of its cluster {cluster} is {entry:#x}")
        if entry & self._zero:
            if offset:
                self._check_inside(cluster, offset)
            return True
        if offset == 0:
            raise NotPlain(f"the entry of its cluster {cluster} is {entry:#x}")
        self._check_inside(cluster, offset)
        return False

    def _check_inside(self, cluster: int, offset: int) -> None:
        if offset >= self._object_bytes:  # the last one may be cut short
            raise NotPlain(f"its cluster {cluster} lies at {offset}, behind the object's end")
