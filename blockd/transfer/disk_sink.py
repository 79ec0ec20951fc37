"""Where an image becomes a disk: written past the page cache, and read back.

The reading follows the writing while more comes, so that the digest is of what the disk holds, and
is there when the last byte is. qemu-img, where it converts, never sees the disk.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import queue
import stat
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Final

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.errors import StorageError
from blockd.domain.volume import OpenDisk
from blockd.transfer.digest import ContentDigest, cluster_sums, data_ranges
from blockd.transfer.extent_copy import Piece
from blockd.transfer.nbd import MOST_BYTES, Buffer
from blockd.transfer.pages import pages
from blockd.transfer.threads import threads

_PIECE_BYTES: Final = MOST_BYTES
_PIECES_TO_WRITE: Final = 6
_PIECES_TO_READ: Final = 2
#: Writes that are not read back yet: enough to bridge a slow moment, and still in the disk's cache.
_MOST_BEHIND: Final = 64

_BLKSSZGET: Final = 0x1268  # linux/fs.h: the logical block size, an int
_FILE_BLOCK_BYTES: Final = 4096

_Ranges = list[tuple[int, int]]  # begin, end
_Sums = list[tuple[int, list[bytes | None]]]  # first cluster, those from it on


class DiskSink:
    """An empty disk, written through NBD (`nbd.Export`), ascending, or in pieces. See `disk_sink`.

    `finish` answers the content digest of what was read back.
    """

    read_only = False

    def __init__(
        self,
        direct: int,
        buffered: int,
        size_bytes: int,
        block_bytes: int,
        pool: ThreadPoolExecutor,
        digest: ContentDigest,
    ) -> None:
        """`direct`, `buffered`: descriptors of the disk; the first one takes whole blocks only."""
        self.size_bytes = -(-size_bytes // 512) * 512
        self._direct, self._buffered, self._block_bytes = direct, buffered, block_bytes
        self._threads = pool
        self._room = asyncio.Semaphore(_PIECES_TO_WRITE)
        self._behind = asyncio.Semaphore(_MOST_BEHIND)
        self._placed = pages(_PIECE_BYTES)  # what `place` gave last
        self._spare = [self._placed]
        self._end = 0  # nothing beyond it was written
        self._written: asyncio.Queue[tuple[_Ranges, asyncio.Future[None]] | None] = asyncio.Queue()
        self._to_read: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(_PIECES_TO_READ):
            self._to_read.put(pages(_PIECE_BYTES))
        self._digest = digest
        self._following = asyncio.create_task(self._follow(), name="reading back")
        self._following.add_done_callback(lambda _: self._behind.release())  # `place` shall know

    # what qemu-img asks

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """Zeros beyond what was written; it has no reason to read that."""
        if offset < self._end:
            raise StorageError("qemu-img reads what it writes: the import cannot go on")
        return [bytes(length)]

    async def place(self, offset: int, length: int) -> Sequence[memoryview]:
        """Room for one write, behind all before it."""
        if offset < self._end:
            raise StorageError(f"qemu-img wrote at {offset} out of its turn: the import is wrong")
        await self._not_too_far_ahead()
        await self._room.acquire()
        self._placed = self._spare.pop() if self._spare else pages(_PIECE_BYTES)
        return [memoryview(self._placed)[:length]]

    async def written(self, offset: int, length: int) -> None:
        """Goes to the disk in a thread; what becomes of it is known when it is read back."""
        buffer = self._placed
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._threads, partial(self._write, buffer, offset, length))
        writing.add_done_callback(lambda done: self._give_back(buffer, done))
        self._written.put_nowait(([(offset, offset + length)], writing))
        self._end = offset + length

    async def zero(self, offset: int, length: int) -> None:
        """What is not written is zeros already."""
        if offset < self._end:
            raise StorageError(f"qemu-img zeroes at {offset} what it wrote: the import is wrong")
        self._end = offset + length

    async def flush(self) -> None:
        """Nothing: `finish` makes all of it durable, or the disk is thrown away."""

    # what comes without qemu-img

    async def put(self, buffer: mmap.mmap, pieces: Sequence[Piece]) -> asyncio.Future[None]:
        """Write pieces of a buffer, but for zeros, which the disk holds already.

        Where pieces share a cluster of the digest, they come ascending.

        Returns:
            What ends when the buffer is free again.

        Raises:
            StorageError: the disk could not be written or read, before.
        """
        await self._not_too_far_ahead()
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._threads, partial(self._write_data, buffer, pieces))
        ranges = [(piece.disk_offset, piece.disk_offset + piece.length) for piece in pieces]
        self._written.put_nowait((ranges, writing))
        return writing

    # to the end

    async def finish(self) -> str:
        """After a good end: all of it is durable; the content digest of what is there.

        Raises:
            StorageError: the disk could not be written or read.
        """
        self._written.put_nowait(None)
        await self._following
        await asyncio.get_running_loop().run_in_executor(self._threads, self._sync)
        return self._digest.hex()

    async def close(self) -> None:
        """Read back no more."""
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    # behind who writes

    async def _not_too_far_ahead(self) -> None:
        await self._behind.acquire()
        if self._following.done():  # it has failed: a write, or a look at one
            self._behind.release()
            self._following.result()

    async def _follow(self) -> None:
        """Read back, in order, what is written, whole clusters of it, and add it to the digest."""
        reading: deque[asyncio.Future[_Sums]] = deque()
        trail = _Trail()

        async def look(ranges: _Ranges) -> None:
            for some in _at_once(ranges):
                if len(reading) == _PIECES_TO_READ:
                    self._add(await reading.popleft())
                work = partial(self._read_back, some)
                reading.append(asyncio.get_running_loop().run_in_executor(self._threads, work))

        while (item := await self._written.get()) is not None:
            ranges, writing = item
            await writing
            await look([whole for begin, end in ranges for whole in trail.go_on(begin, end)])
            self._behind.release()
        await look(trail.rest())
        while reading:
            self._add(await reading.popleft())

    def _add(self, found: _Sums) -> None:
        for first, sums in found:
            self._digest.add_sums(first, sums)

    def _give_back(self, buffer: mmap.mmap, writing: asyncio.Future[None]) -> None:
        if not writing.cancelled():
            writing.exception()  # who reads back tells of the first; those behind it say the same
        self._spare.append(buffer)
        self._room.release()

    # in threads

    def _write(self, buffer: mmap.mmap, offset: int, length: int, at: int = 0) -> None:
        """Write `length` bytes from place `at` of the buffer."""
        is_whole = not any(number % self._block_bytes for number in (offset, length, at))
        descriptor = self._direct if is_whole else self._buffered
        try:
            with memoryview(buffer) as view:
                done = 0
                while done < length:
                    with view[at + done : at + length] as rest:
                        done += os.pwrite(descriptor, rest, offset + done)
        except OSError as err:
            raise StorageError(f"the disk cannot be written: {err.strerror}") from err

    def _write_data(self, buffer: mmap.mmap, pieces: Sequence[Piece]) -> None:
        with memoryview(buffer) as view:
            for piece in pieces:
                with view[piece.at : piece.at + piece.length] as data:
                    ranges = data_ranges(piece.disk_offset, data)
                for begin, end in ranges:
                    self._write(buffer, piece.disk_offset + begin, end - begin, piece.at + begin)

    def _read_back(self, ranges: _Ranges) -> _Sums:
        """The sums of whole clusters; what lies beyond the size is no part of the disk."""
        buffer = self._to_read.get()
        try:
            with memoryview(buffer) as view:
                return [(b // CLUSTER_BYTES, self._sums(view, b, e)) for b, e in ranges]
        except OSError as err:
            raise StorageError(f"the disk cannot be read: {err.strerror}") from err
        finally:
            self._to_read.put(buffer)

    def _sums(self, view: memoryview, begin: int, end: int) -> list[bytes | None]:
        need = min(end, self.size_bytes) - begin
        got = 0
        while got < need:
            with view[got : end - begin] as rest:
                count = os.preadv(self._direct, [rest], begin + got)
            if count == 0:
                raise StorageError("the disk is shorter than its volume")
            got += count
        with view[:need] as data:
            return cluster_sums(data)

    def _sync(self) -> None:
        try:
            os.fsync(self._buffered)
        except OSError as err:
            raise StorageError(f"the disk cannot be written: {err.strerror}") from err


class _Trail:
    """Behind who writes: which whole clusters are written, each told once."""

    def __init__(self) -> None:
        self._begin = self._end = 0  # written, and not told yet

    def go_on(self, begin: int, end: int) -> _Ranges:
        """What is whole now that this range is written."""
        told: _Ranges = []
        if begin < self._end or begin // CLUSTER_BYTES * CLUSTER_BYTES > self._end:
            told += self.rest()  # of that cluster no more will come
            self._begin = begin // CLUSTER_BYTES * CLUSTER_BYTES
        self._end = end
        whole = end // CLUSTER_BYTES * CLUSTER_BYTES
        if whole > self._begin:
            told.append((self._begin, whole))
            self._begin = whole
        return told

    def rest(self) -> _Ranges:
        """What was begun, as whole clusters."""
        begin, self._begin = self._begin, _clusters_up(self._end)
        return [(begin, self._begin)] if begin < self._end else []


def _at_once(ranges: _Ranges) -> Iterator[_Ranges]:
    """The same in pieces that are read at once, and as many of these as fill a buffer."""
    some: _Ranges = []
    room = _PIECE_BYTES
    for begin, end in ranges:
        at = begin
        while at < end:
            if room == 0:
                yield some
                some, room = [], _PIECE_BYTES
            piece = min(end - at, room)
            some.append((at, at + piece))
            at, room = at + piece, room - piece
    if some:
        yield some


@asynccontextmanager
async def disk_sink(
    disk: OpenDisk, size_bytes: int, digest: ContentDigest | None = None
) -> AsyncIterator[DiskSink]:
    """A sink onto the first `size_bytes` of an empty disk, for the length of the block.

    Args:
        digest: one that takes clusters in the order in which they will come; None: ascending.

    Raises:
        StorageError: the disk cannot be opened.
    """
    with ExitStack() as opened:
        buffered = _opened(opened, disk.path, 0)
        try:
            direct = _opened(opened, disk.path, os.O_DIRECT)
        except StorageError as err:
            # A file system that cannot, under a test. Anything else must not go unnoticed: what is
            # read back would come from the page cache.
            if not isinstance(err.__cause__, OSError) or err.__cause__.errno != errno.EINVAL:
                raise
            direct = buffered
        block_bytes = _block_bytes(buffered)
        digest = ContentDigest() if digest is None else digest
        async with threads(_PIECES_TO_READ + 1, "disk") as pool:
            sink = DiskSink(direct, buffered, size_bytes, block_bytes, pool, digest)
            try:
                yield sink
            finally:
                await sink.close()


def _opened(stack: ExitStack, path: str, flag: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flag)
    except OSError as err:
        raise StorageError(f"the disk cannot be opened: {err.strerror}") from err
    stack.callback(os.close, descriptor)
    return descriptor


def _clusters_up(offset: int) -> int:
    return -(-offset // CLUSTER_BYTES) * CLUSTER_BYTES


def _block_bytes(descriptor: int) -> int:
    """What direct reads and writes must be multiples of. Source: open(2), O_DIRECT."""
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return _FILE_BLOCK_BYTES
    size = fcntl.ioctl(descriptor, _BLKSSZGET, bytes(4))
    return int(struct.unpack("i", size)[0])
