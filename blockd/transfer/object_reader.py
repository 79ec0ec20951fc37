"""An object as qemu-img reads it: ranged GETs, coalesced into blocks, ahead of the reader.

Reads of an image go upwards, with looks at tables elsewhere in between. Blocks are fetched once,
several at a time, kept while they are among the last used, and those after a block that is read
upwards are fetched before they are asked for: so a request's delay is paid once and not each time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from blockd.domain.transfer import ImageFacts
from blockd.transfer.nbd import Buffer, ReadOnlyExport
from blockd.transfer.s3 import ObjectStore

#: Asking costs a millisecond of processor time (signature, headers), so not too small; a dozen are
#: 48 MiB, the memory of one import but for what is being written.
_BLOCK_BYTES = 4 * 1024**2
_KEPT_BLOCKS = 9


class ObjectReader(ReadOnlyExport):
    """An NBD export (`nbd.Export`) of an object, pinned to one ETag."""

    def __init__(
        self,
        store: ObjectStore,
        image: ImageFacts,
        *,
        ahead_blocks: int,
        on_bytes: Callable[[int], None],
    ) -> None:
        """`ahead_blocks` are fetched before they are asked for; `on_bytes` is told what came."""
        self.size_bytes = image.object_bytes
        self._store, self._image, self._on_bytes = store, image, on_bytes
        self._ahead_blocks = ahead_blocks
        self._blocks: OrderedDict[int, asyncio.Task[bytearray]] = OrderedDict()
        self._last = -2  # the block of the latest read that went upwards

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

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes of a range, in pieces of blocks.

        Raises:
            ObjectStoreError: the object changed, or cannot be had.
        """
        first, last = offset // _BLOCK_BYTES, (offset + length - 1) // _BLOCK_BYTES
        wanted = [self._block(number) for number in range(first, last + 1)]
        if first in (self._last, self._last + 1):
            for number in range(last + 1, last + 1 + self._ahead_blocks):
                if number * _BLOCK_BYTES < self.size_bytes:
                    self._block(number)
        if first >= self._last or first == 0:
            self._last = last
        self._forget()
        pieces: list[Buffer] = []
        for number, task in enumerate(wanted, first):
            block = memoryview(await asyncio.shield(task))
            begin = max(offset - number * _BLOCK_BYTES, 0)
            end = min(offset + length - number * _BLOCK_BYTES, len(block))
            pieces.append(block[begin:end])
        return pieces

    def _block(self, number: int) -> asyncio.Task[bytearray]:
        """A block that is here, or on its way."""
        task = self._blocks.get(number)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._fetch(number), name=f"block {number}")
            self._blocks[number] = task
        self._blocks.move_to_end(number)
        return task

    async def _fetch(self, number: int) -> bytearray:
        offset = number * _BLOCK_BYTES
        block = bytearray(min(_BLOCK_BYTES, self.size_bytes - offset))
        image = self._image
        with memoryview(block) as view:
            await self._store.read(image.bucket, image.key, image.etag, offset, view)
        self._on_bytes(len(block))
        return block

    def _forget(self) -> None:
        """Drop the blocks that were used longest ago, but none that is on its way."""
        for number in list(self._blocks):
            if len(self._blocks) <= _KEPT_BLOCKS:
                return
            if self._blocks[number].done():
                del self._blocks[number]
