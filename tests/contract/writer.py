"""A writer that never pauses, whose every instant can be told from the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blockd.service.ports import FrontSpec
from tests.contract.storage import Storage
from tests.support import stamps
from tests.support.stamps import BLOCK_BYTES

#: Blocks are written in leaps, since a copy made in ascending order while somebody writes in
#: ascending order looks like one instant: that of their meeting. Odd, so that all are reached.
LEAP = 97


class Writer:
    """Stamps a front block by block, round after round, each round a new generation.

    `position` counts the blocks that are safely written, over all rounds: the front's content is
    the same as saying how far the writer had come. Their number must be a power of two. Each block
    is read back before it is written again, so that none can be lost unseen, for a moment even.
    """

    def __init__(self, storage: Storage, front: FrontSpec) -> None:
        self.position = 0
        self.stopping = self.ended = False
        self._storage, self._front = storage, front
        self._blocks = front.size_bytes // BLOCK_BYTES
        self._moved = asyncio.Condition()

    async def reaches(self, position: int) -> None:
        """Wait until this many blocks are written, or the writer has failed."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.position >= position or self.ended)
        assert self.position >= position, "the writer ended"

    async def run(self) -> None:
        """Write until told to stop; never cancelled, as a thread may be in the middle of it."""
        try:
            await self._write()
        finally:
            async with self._moved:
                self.ended = True
                self._moved.notify_all()

    async def _write(self) -> None:
        with stamps.opened(self._storage.path(self._front), write=True) as device:
            while not self.stopping:
                rounds, number = divmod(self.position, self._blocks)
                start = number * LEAP % self._blocks * BLOCK_BYTES

                def write(generation: int = rounds + 1, start: int = start) -> None:
                    device.expect(generation - 1, start, start + BLOCK_BYTES)
                    device.write(generation, start, start + BLOCK_BYTES)

                await self._storage.apart(write)
                async with self._moved:
                    self.position += 1
                    self._moved.notify_all()


@asynccontextmanager
async def writing(storage: Storage, front: FrontSpec) -> AsyncIterator[Writer]:
    """Keep a writer going on a front until the block ends; it fails if the writer failed."""
    writer = Writer(storage, front)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        writer.stopping = True
        await task


def instant(generations: list[int]) -> int:
    """The writer's position that these generations picture; raises if they picture none."""
    count = len(generations)
    written = [generations[number * LEAP % count] for number in range(count)]
    last = written[-1]
    ahead = written.count(last + 1)
    if written != [last + 1] * ahead + [last] * (count - ahead):
        raise AssertionError(f"no single instant: {written}")
    return last * count + ahead
