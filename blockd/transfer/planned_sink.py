"""What qemu-img writes into when the image is planned: data arrive ascending and leave as parts.

Nothing is held back. What is planned and was not written must be zeros on the disk (qemu-img passes
over zeros): it is read and compared, so that an export that lost a byte cannot succeed.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.errors import StorageError
from blockd.transfer.digest import ContentDigest, is_zero
from blockd.transfer.disk_reader import DiskReader
from blockd.transfer.nbd import Buffer
from blockd.transfer.parts import PartsWriter
from blockd.transfer.qcow2_plan import TargetPlan


class PlannedSink:
    """An NBD export (`nbd.Export`) whose content is planned."""

    read_only = False

    def __init__(
        self,
        plan: TargetPlan,
        parts: PartsWriter,
        disk: DiskReader,
        digest: ContentDigest,
        start_bytes: int,
    ) -> None:
        """`start_bytes`: of the image, in whole parts, are at the server and in `digest`."""
        self.size_bytes = plan.object_bytes
        self._plan, self._parts, self._disk, self._digest = plan, parts, disk, digest
        self._at = start_bytes  # all before it is in its part
        self._hashed = max(start_bytes, plan.data_start_bytes)
        self._hashing: asyncio.Task[None] | None = None
        self._buffers: dict[int, mmap.mmap] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """What is being hashed ends before its buffers go."""
        if self._hashing is not None:
            await asyncio.gather(self._hashing, return_exceptions=True)

    # what qemu-img asks

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """Header and tables; it has no reason to read data back."""
        if offset + length > self._plan.data_start_bytes:
            raise StorageError("qemu-img reads what it writes: the export cannot go on")
        return [self._plan.tables(offset, length)]

    async def place(self, offset: int, length: int) -> Sequence[memoryview]:
        """Room in one part, or in two neighbours."""
        if offset < max(self._at, self._plan.data_start_bytes):
            raise StorageError(f"qemu-img wrote at {offset} out of its turn: the export is wrong")
        await self._advance(offset)
        places = []
        while length:
            buffer, within = await self._buffer(offset), offset % self._parts.part_bytes
            piece = min(length, self._parts.part_bytes - within)
            places.append(memoryview(buffer)[within : within + piece])
            offset, length = offset + piece, length - piece
        return places

    async def written(self, offset: int, length: int) -> None:
        """Hashes whole clusters behind qemu-img's back, and sends parts that are full."""
        self._move(offset + length)

    async def zero(self, offset: int, length: int) -> None:
        """Nothing: what is not written is compared with the disk."""

    async def flush(self) -> None:
        """Nothing: the upload is completed or not at all."""

    # to the end

    async def finish(self) -> str:
        """After qemu-img's good end: account for every byte; the content digest.

        The last part is not sent yet: `close` adds the trailer to it.
        """
        await self._advance(self.size_bytes)
        if self._hashing is not None:
            await self._hashing
        return self._digest.hex()

    async def close(self, trailer: bytes) -> None:
        """Append the trailer and send what is left."""
        offset = self.size_bytes
        while trailer:
            buffer, within = await self._buffer(offset), offset % self._parts.part_bytes
            piece = trailer[: self._parts.part_bytes - within]
            buffer[within : within + len(piece)] = piece
            offset, trailer = offset + len(piece), trailer[len(piece) :]
        for number in sorted(self._buffers):
            begin = number * self._parts.part_bytes
            length = min(offset - begin, self._parts.part_bytes)
            self._parts.submit(number + 1, self._buffers[number], length)
        self._buffers.clear()
        await self._parts.drain()

    async def _advance(self, to: int) -> None:
        """Make what lies before `to` as it is planned."""
        while self._at < to:
            number, within = divmod(self._at, self._parts.part_bytes)
            end = min(to, (number + 1) * self._parts.part_bytes)
            if self._at < self._plan.data_start_bytes:
                end = min(end, self._plan.data_start_bytes)
                buffer, length = await self._buffer(self._at), end - self._at
                tables = await self._disk.do(partial(self._plan.tables, self._at, length))
                buffer[within : within + length] = tables
            else:
                buffer, length = await self._buffer(self._at), end - self._at
                await self._disk.do(partial(self._check_zeros, self._at, end))
                buffer[within : within + length] = bytes(length)
            self._move(end)

    def _check_zeros(self, begin: int, end: int) -> None:
        """In the disk's thread: what qemu-img passed over is nothing but zeros on the disk."""
        first = begin // CLUSTER_BYTES * CLUSTER_BYTES
        clusters = self._plan.clusters(first, -(-end // CLUSTER_BYTES) * CLUSTER_BYTES)
        scratch = memoryview(bytearray(CLUSTER_BYTES))
        for number, cluster in enumerate(clusters):
            place = first + number * CLUSTER_BYTES
            low, high = max(begin - place, 0), min(end - place, CLUSTER_BYTES)
            piece = scratch[: high - low]
            piece[:] = bytes(len(piece))
            self._disk.read(cluster * CLUSTER_BYTES + low, piece)
            if not is_zero(piece):
                raise StorageError(
                    f"qemu-img left out data at byte {cluster * CLUSTER_BYTES + low} of the disk"
                )

    def _move(self, to: int) -> None:
        """All before `to` is in its parts: hash what is whole, send what is full."""
        self._at = to
        whole = to if to == self.size_bytes else to // CLUSTER_BYTES * CLUSTER_BYTES
        while self._hashed < whole:
            number = self._hashed // self._parts.part_bytes
            end = min(whole, (number + 1) * self._parts.part_bytes)
            self._hash(self._buffers[number], self._hashed, end)
            self._hashed = end
        for number in sorted(self._buffers):
            # The last part waits for the trailer.
            if (number + 1) * self._parts.part_bytes <= min(to, self.size_bytes - 1):
                buffer = self._buffers.pop(number)
                self._parts.submit(number + 1, buffer, self._parts.part_bytes, self._hashing)

    def _hash(self, buffer: mmap.mmap, begin: int, end: int) -> None:
        earlier = self._hashing
        clusters = self._plan.clusters(begin, end)
        within = begin % self._parts.part_bytes

        def work() -> None:
            with memoryview(buffer) as part, part[within : within + end - begin] as data:
                add_clusters(self._digest, clusters, data)

        async def after() -> None:
            if earlier is not None:
                await earlier
            await self._disk.do(work)

        self._hashing = asyncio.create_task(after(), name="content digest")

    async def _buffer(self, offset: int) -> mmap.mmap:
        number = offset // self._parts.part_bytes
        if number not in self._buffers:
            self._buffers[number] = await self._parts.buffer()
        return self._buffers[number]


def add_clusters(digest: ContentDigest, clusters: Sequence[int], data: memoryview) -> None:
    """Add clusters, ascending, whose bytes lie behind one another in `data`."""
    first = 0
    for number in range(1, len(clusters) + 1):
        if number == len(clusters) or clusters[number] != clusters[number - 1] + 1:
            with data[first * CLUSTER_BYTES : number * CLUSTER_BYTES] as run:
                digest.add(clusters[first], run)
            first = number
