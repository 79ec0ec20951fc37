"""Reads a disk in threads: what is exported, what was sent before, what is imported."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.errors import StorageError
from blockd.domain.volume import OpenDisk
from blockd.transfer.digest import ContentDigest
from blockd.transfer.threads import threads

T = TypeVar("T")

#: Reads under way at once. A disk over a network answers as many in the time of one.
_READS_AT_ONCE: Final = 8
_AT_ONCE_CLUSTERS: Final = 64
_PIECES_AHEAD: Final = 8


class DiskReader:
    """One open disk and the threads in which it is read."""

    def __init__(self, descriptor: int, size_bytes: int, pool: ThreadPoolExecutor) -> None:
        """`size_bytes`: what lies beyond is no part of the image, and reads as zeros."""
        self._descriptor, self.size_bytes, self._threads = descriptor, size_bytes, pool

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread."""
        (done,) = await self.do_all([work])
        return done

    async def do_all(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Run several at once, each in a thread; what each returned.

        After an error, and for who is cancelled, some may go on until the disk is closed: what
        they fill must not be used again.
        """
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._threads, work) for work in works))

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`; in a thread. Past the page cache both must be whole sectors.

        Raises:
            StorageError: the disk fails, or ends before its `size_bytes`.
        """
        left = into
        while offset < self.size_bytes and left:
            try:
                # Beyond the size, too, as far as the disk goes: sectors are read whole.
                count = os.preadv(self._descriptor, [left], offset)
            except OSError as err:
                raise StorageError(f"the disk cannot be read: {err.strerror}") from err
            if count == 0:
                raise StorageError("the disk is shorter than its volume")
            offset, left = offset + count, left[count:]
        beyond = min(len(left) + offset - self.size_bytes, len(into))
        if beyond > 0:
            into[-beyond:] = bytes(beyond)

    async def digest(self, allocation: Allocation) -> str:
        """The content digest of what is allocated."""
        digest = ContentDigest()
        whole = memoryview(bytearray(_AT_ONCE_CLUSTERS * CLUSTER_BYTES))

        def add(first: int, clusters: int) -> None:
            offset = first * CLUSTER_BYTES
            piece = whole[: min(clusters * CLUSTER_BYTES, self.size_bytes - offset)]
            self.read(offset, piece)
            digest.add(first, piece)

        ahead = _pieces(allocation)
        for _ in range(_PIECES_AHEAD):
            self._will_need(next(ahead, None))
        for piece in _pieces(allocation):
            self._will_need(next(ahead, None))
            await self.do(partial(add, *piece))
        return digest.hex()

    def _will_need(self, piece: tuple[int, int] | None) -> None:
        """Let the kernel read while we hash."""
        if piece is not None:
            first, clusters = piece
            offset, length = first * CLUSTER_BYTES, clusters * CLUSTER_BYTES
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def _pieces(allocation: Allocation) -> Iterator[tuple[int, int]]:
    """(first cluster, how many) of what is allocated, in pieces that are read at once."""
    for first, count in allocation.runs():
        for begin in range(first, first + count, _AT_ONCE_CLUSTERS):
            yield begin, min(_AT_ONCE_CLUSTERS, first + count - begin)


@asynccontextmanager
async def open_disk(
    disk: OpenDisk, size_bytes: int, *, past_cache: bool
) -> AsyncIterator[DiskReader]:
    """A reader of the disk's first `size_bytes` for the length of the block.

    Args:
        past_cache: do not push out of the page cache what the host needs (O_DIRECT); offsets,
            lengths and memory must be whole sectors. A file system that cannot is read as usual.

    Raises:
        StorageError: it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(disk.path, flags | (os.O_DIRECT if past_cache else 0))
        except OSError as err:
            if err.errno != errno.EINVAL or not past_cache:
                raise
            descriptor = os.open(disk.path, flags)
    except OSError as err:
        raise StorageError(f"the disk cannot be opened: {err.strerror}") from err
    try:
        async with threads(_READS_AT_ONCE, "disk") as pool:
            yield DiskReader(descriptor, size_bytes, pool)
    finally:
        os.close(descriptor)
