"""An object as it is read for an import: ranged GETs, pinned to one ETag.

For qemu-img they are coalesced into blocks, ahead of the reader.

Reads of an image go upwards, with looks at tables elsewhere in between. Blocks are fetched once,
several at a time, kept while they are among the last used, and those after a block that is read
upwards are fetched before they are asked for: so a request's delay is paid once and not each time.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from blockd.domain.errors import StorageError
from blockd.domain.transfer import ImageFacts
from blockd.domain.units import SECTOR_BYTES
from blockd.transfer.nbd import Buffer, ReadOnlyExport
from blockd.transfer.s3 import ObjectStore

#: Asking costs a millisecond of processor time (signature, headers), so not too small; a dozen are
#: 48 MiB, the memory of one import but for what is being written.
_BLOCK_BYTES = 4 * 1024**2
_LEAST_KEPT_BLOCKS = 9
#: What is read out of order comes alone, in whole pieces of this.
_ALONE_BYTES = 64 * 1024
_MOST_ALONE_BYTES = 256 * 1024
#: A read that begins so close behind the one before goes on with it.
_GAP_BYTES = 64 * 1024
#: A block comes in 10 ms from a server in the same building.
_FAR_S = 0.03
#: No honest image is read more often than this; a hostile one could be, for ever.
_MOST_TIMES, _MORE_BYTES = 16, 1024**3


class ObjectReader(ReadOnlyExport):
    """An NBD export (`nbd.Export`) of an object, pinned to one ETag.

    It ends with a whole sector: behind the object's end are zeros, as qemu-img finds them behind a
    file's. The last cluster of a packed image claims whole sectors, and its file may end before
    them.

    Attributes:
        size_bytes: of the export: the object's, in whole sectors.
        is_far: the first block took long to come, so answers are worth waiting for in parallel.
    """

    def __init__(
        self,
        store: ObjectStore,
        image: ImageFacts,
        *,
        ahead_blocks: int,
        on_bytes: Callable[[int], None],
    ) -> None:
        """`ahead_blocks` are fetched before they are asked for; `on_bytes` hears how much came."""
        self.size_bytes = -(-image.object_bytes // SECTOR_BYTES) * SECTOR_BYTES
        self._store, self._image, self._on_bytes = store, image, on_bytes
        self._ahead_blocks = ahead_blocks
        self.is_far = False
        # Those ahead must not push out the one that is being read.
        self._kept_blocks = max(_LEAST_KEPT_BLOCKS, ahead_blocks + 5)
        self._may_fetch_bytes = _MOST_TIMES * image.object_bytes + _MORE_BYTES
        self._blocks: OrderedDict[int, asyncio.Task[bytearray]] = OrderedDict()
        self._end = -_GAP_BYTES - 1  # of the latest read

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Whatever is still being fetched is given up."""
        for task in self._blocks.values():
            task.cancel()
        await asyncio.gather(*self._blocks.values(), return_exceptions=True)
        self._blocks.clear()

    async def table(self, offset: int, length: int) -> Buffer:
        """The bytes of a range; the object's first block is kept, as tables follow the header.

        Others are not told to `on_bytes`: those among the data come once more, with these.

        Raises:
            ObjectStoreError: the object changed, or cannot be had.
        """
        if offset + length <= min(_BLOCK_BYTES, self.size_bytes):
            return memoryview(await asyncio.shield(self._block(0)))[offset : offset + length]
        return await self._get(offset, length, is_told=False)

    async def fill(self, offset: int, into: memoryview, *, is_told: bool = True) -> None:
        """Bring the bytes of a range into memory: those of a first block that is kept, and others.

        Raises:
            ObjectStoreError: the object changed, or cannot be had.
        """
        first = self._blocks.get(0)
        if first is not None and first.done() and not first.cancelled() and not first.exception():
            with memoryview(first.result())[offset : offset + len(into)] as kept:
                into[: len(kept)] = kept
                offset, into = offset + len(kept), into[len(kept) :]
        if not into:
            return
        self._may_fetch_bytes -= len(into)
        if self._may_fetch_bytes < 0:
            raise StorageError(
                "the image is read over and over: its tables name the same clusters again and again"
            )
        image = self._image
        await self._store.read(image.bucket, image.key, image.etag, offset, into)
        if is_told:
            self._on_bytes(len(into))

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes of a range, in pieces of blocks.

        Raises:
            ObjectStoreError: the object changed, or cannot be had.
        """
        first, last = offset // _BLOCK_BYTES, (offset + length - 1) // _BLOCK_BYTES
        goes_on = 0 <= offset - self._end <= _GAP_BYTES or length > _MOST_ALONE_BYTES
        self._end = offset + length
        if not goes_on and first not in self._blocks:
            # Clusters in the order in which a guest happened to write them: a block for each would
            # be the object 60 times over.
            return [await self._alone(offset, length)]
        wanted = [self._block(number) for number in range(first, last + 1)]
        if goes_on:
            self._fetch_ahead(last + 1)
        self._forget()
        pieces: list[Buffer] = []
        for number, task in enumerate(wanted, first):
            block = memoryview(await asyncio.shield(task))
            begin = max(offset - number * _BLOCK_BYTES, 0)
            end = min(offset + length - number * _BLOCK_BYTES, len(block))
            pieces.append(block[begin:end])
        return pieces

    def _fetch_ahead(self, first: int) -> None:
        for number in range(first, first + self._ahead_blocks):
            if number * _BLOCK_BYTES < self.size_bytes:
                self._block(number)

    def _block(self, number: int) -> asyncio.Task[bytearray]:
        """A block that is here, or on its way."""
        task = self._blocks.get(number)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._fetch(number), name=f"block {number}")
            self._blocks[number] = task
        self._blocks.move_to_end(number)
        return task

    async def _fetch(self, number: int) -> bytearray:
        offset, began = number * _BLOCK_BYTES, time.monotonic()
        found = await self._get(offset, min(_BLOCK_BYTES, self.size_bytes - offset))
        if number == 0:
            self.is_far = time.monotonic() - began > _FAR_S
        return found

    async def _alone(self, offset: int, length: int) -> memoryview:
        begin = offset // _ALONE_BYTES * _ALONE_BYTES
        end = min(-(-(offset + length) // _ALONE_BYTES) * _ALONE_BYTES, self.size_bytes)
        found = await self._get(begin, end - begin)
        return memoryview(found)[offset - begin :][:length]

    async def _get(self, offset: int, length: int, *, is_told: bool = True) -> bytearray:
        found = bytearray(length)
        there = max(min(length, self._image.object_bytes - offset), 0)
        with memoryview(found) as view, view[:there] as into:
            await self.fill(offset, into, is_told=is_told)
        return found

    def _forget(self) -> None:
        """Drop the blocks that were used longest ago, but none that is on its way."""
        for number in list(self._blocks):
            if len(self._blocks) <= self._kept_blocks:
                return
            if self._blocks[number].done():
                del self._blocks[number]
