"""Reads a disk in a thread: what qemu-img left out, what was sent before, what was imported."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.errors import StorageError
from blockd.domain.volume import OpenDisk
from blockd.transfer.digest import ContentDigest

T = TypeVar("T")

_AT_ONCE_CLUSTERS = 64
_PIECES_AHEAD = 8


class DiskReader:
    """One open disk and one thread, so that what is asked of it is done in order."""

    def __init__(self, descriptor: int, size_bytes: int, thread: ThreadPoolExecutor) -> None:
        """`size_bytes`: what lies beyond is no part of the image, and reads as zeros."""
        self._descriptor, self.size_bytes, self._thread = descriptor, size_bytes, thread

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread, after what was given to it before. It ends before we leave."""
        doing = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait([doing])  # it uses buffers that go away with us
            raise

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`; in the thread. Raises StorageError."""
        end = min(offset + len(into), self.size_bytes)
        while offset < end:
            try:
                count = os.preadv(self._descriptor, [into[: end - offset]], offset)
            except OSError as err:
                raise StorageError(f"the disk cannot be read: {err.strerror}") from err
            if count == 0:
                raise StorageError("the disk is shorter than its volume")
            offset, into = offset + count, into[count:]

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


@contextmanager
def open_disk(disk: OpenDisk, size_bytes: int) -> Iterator[DiskReader]:
    """A reader of the disk's first `size_bytes` for the length of the block."""
    try:
        descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise StorageError(f"the disk cannot be opened: {err.strerror}") from err
    thread = ThreadPoolExecutor(1, "disk")
    try:
        yield DiskReader(descriptor, size_bytes, thread)
    finally:
        thread.shutdown(wait=True)
        os.close(descriptor)
