"""What qemu-img writes into when it lays out the image itself, behind a skeleton of ours.

Tables are rewritten until the end, data are appended. So the parts with tables are held and go
when all is written: those full of tables as `HeldTables`, the one in which data begin as it is.
Every other part goes when writing has moved a part beyond it.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from blockd.domain.errors import StorageError
from blockd.transfer.grid import split
from blockd.transfer.held_tables import HeldTables
from blockd.transfer.nbd import Buffer
from blockd.transfer.parts import PartsWriter
from blockd.transfer.qcow2_plan import Skeleton

#: Part buffers that are in use besides those being sent: one held, two written to, one to come.
OPEN_BUFFERS = 4


class LaidOutSink:
    """An NBD export (`nbd.Export`) of `most_bytes`, of which the image will need some.

    Attributes:
        image_bytes: how far it was written, in whole sectors of 64 KiB.
    """

    read_only = False

    def __init__(
        self, skeleton: Skeleton, parts: PartsWriter, tables: HeldTables, most_bytes: int
    ) -> None:
        """`tables`: for what is written into the first `table_parts` parts."""
        self.size_bytes = most_bytes
        self._skeleton, self._parts, self._tables = skeleton, parts, tables
        self._table_parts = table_parts(skeleton, parts.part_bytes)
        self.image_bytes = skeleton.data_start_bytes
        self._buffers: dict[int, mmap.mmap] = {}
        self._pending: list[memoryview] = []

    async def prepare(self) -> None:
        """Put the skeleton where it is held."""
        step = 1024**2
        for offset in range(0, self._skeleton.data_start_bytes, step):
            length = min(step, self._skeleton.data_start_bytes - offset)
            await self._put(offset, self._skeleton.tables(offset, length))

    # what qemu-img asks

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """Of what was not sent yet; what was never written is zeros."""
        pieces: list[Buffer] = []
        for number, within, piece in split(offset, length, self._parts.part_bytes):
            if number < self._table_parts:
                begin = number * self._parts.part_bytes + within
                pieces.append(await self._tables.read(begin, piece))
            elif number in self._buffers:
                pieces.append(memoryview(self._buffers[number])[within : within + piece])
            elif number * self._parts.part_bytes >= self.image_bytes:
                pieces.append(bytes(piece))
            else:
                raise StorageError("qemu-img reads what is sent already: the export cannot go on")
        return pieces

    async def place(self, offset: int, length: int) -> Sequence[memoryview]:
        """Room in memory; for a part full of tables, a buffer from which `written` takes them."""
        self._pending = [
            memoryview(bytearray(piece))
            if number < self._table_parts
            else memoryview(await self._buffer(number))[within : within + piece]
            for number, within, piece in split(offset, length, self._parts.part_bytes)
        ]
        return self._pending

    async def written(self, offset: int, length: int) -> None:
        """Sends the parts that nobody writes to any more."""
        for place, (number, within, _) in zip(
            self._pending, split(offset, length, self._parts.part_bytes), strict=True
        ):
            if number < self._table_parts:
                begin = number * self._parts.part_bytes + within
                await self._tables.write(begin, place)
        self._pending = []
        end = offset + length
        if end > self._skeleton.data_start_bytes:
            self.image_bytes = max(self.image_bytes, -(-end // 65536) * 65536)
        # One part back: compressed clusters are written by several hands, slightly out of order.
        settled = self.image_bytes // self._parts.part_bytes - 1
        for number in [number for number in self._buffers if self._table_parts < number < settled]:
            self._send(number, self._parts.part_bytes)

    async def zero(self, offset: int, length: int) -> None:
        """Tables are made of zeros first."""
        for at in range(offset, offset + length, 1024**2):
            await self._put(at, bytes(min(1024**2, offset + length - at)))

    async def flush(self) -> None:
        """Nothing: the upload is completed or not at all."""

    async def close(self, trailer: bytes) -> None:
        """After qemu-img's good end: append the trailer, and send all that was held."""
        await self._fill(self.image_bytes, trailer)
        end = self.image_bytes + len(trailer)
        for number in sorted(self._buffers):
            begin = number * self._parts.part_bytes
            self._send(number, min(end - begin, self._parts.part_bytes))
        for number in range(self._table_parts):
            buffer = await self._parts.buffer()
            with memoryview(buffer) as part:
                begin = number * self._parts.part_bytes
                await self._tables.read_into(begin, part)
            self._parts.submit(number + 1, buffer, self._parts.part_bytes)
        await self._parts.drain()

    async def _put(self, offset: int, data: bytes) -> None:
        await self._fill(offset, data)
        await self.written(offset, len(data))

    async def _fill(self, offset: int, data: bytes) -> None:
        done = 0
        for place in await self.place(offset, len(data)):
            place[:] = data[done : done + len(place)]
            done += len(place)

    def _send(self, number: int, length: int) -> None:
        self._parts.submit(number + 1, self._buffers.pop(number), length)

    async def _buffer(self, number: int) -> mmap.mmap:
        if number in self._buffers:
            return self._buffers[number]
        if (number + 1) in self._parts.etags or number * self._parts.part_bytes < self._sent_bytes:
            raise StorageError("qemu-img rewrites what is sent already: the export is wrong")
        self._buffers[number] = await self._parts.buffer()
        return self._buffers[number]

    @property
    def _sent_bytes(self) -> int:
        """Before here everything that is not held was sent."""
        settled = max(self.image_bytes // self._parts.part_bytes - 1, 0)
        return settled * self._parts.part_bytes if settled > self._table_parts + 1 else 0


def table_parts(skeleton: Skeleton, part_bytes: int) -> int:
    """How many parts are full of tables."""
    return skeleton.data_start_bytes // part_bytes
