"""Stamped data: every 4 KiB block says where it belongs, when it was written, and that it is whole.

A *generation* is a number above zero that says which writing a block is from; generation 0 means
zeros, so that "never written" is compared in the same way. Works on block devices and on files of
any multiple of 512 bytes; reading goes past the page cache, to what the device really holds.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK_BYTES = 4096
#: More at a time is slower: what malloc takes from the kernel and gives back at once is dear in the
#: lab, where a page fault costs as much as writing a block.
_CHUNK_BYTES = 16 * BLOCK_BYTES
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_BLKFLSBUF = 0x1261  # linux/fs.h: write back and drop a block device's cached pages

# One record of a block, repeated to fill it, so that each sector of it speaks for itself.
_FIELDS = struct.Struct("<8sQQ")
_RECORD_BYTES = 32
_MAGIC = b"blkstamp"


def block(offset_bytes: int, generation: int) -> bytes:
    """The 4 KiB that belong at `offset_bytes`, as of `generation`."""
    if generation == 0:
        return _ZERO_BLOCK
    fields = _FIELDS.pack(_MAGIC, offset_bytes, generation)
    record = fields + struct.pack("<Q", zlib.crc32(fields))
    return record * (BLOCK_BYTES // _RECORD_BYTES)


class Stamps:
    """An opened device or file. Offsets are bytes; `end` None means its end.

    A start must be a multiple of 4096; an end also, or the end of the device.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor, self.size_bytes = descriptor, size_bytes
        self._buffer = mmap.mmap(-1, _CHUNK_BYTES)  # page-aligned, as O_DIRECT wants it

    def close(self) -> None:
        """Give the buffer back; the descriptor stays open."""
        self._buffer.close()

    def write(self, generation: int, start: int = 0, end: int | None = None) -> None:
        """Stamp a range."""
        for offset, length in self._chunks(start, end):
            self._buffer[:length] = _expected(offset, length, generation)
            with memoryview(self._buffer)[:length] as data:
                written = os.pwritev(self._descriptor, [data], offset)
            if written != length:
                raise AssertionError(f"{written} of {length} bytes written at {offset}")

    def read(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """A range in ascending pieces of at most 64 KiB, each with its offset."""
        for offset, length in self._chunks(start, end):
            with memoryview(self._buffer)[:length] as room:
                count = os.preadv(self._descriptor, [room], offset)
            if count != length:
                raise AssertionError(f"{count} of {length} bytes read at {offset}")
            yield offset, self._buffer[:length]

    def expect(self, generation: int, start: int = 0, end: int | None = None) -> None:
        """Compare a range with what it should hold; names the first offset that differs."""
        for offset, data in self.read(start, end):
            wanted = _expected(offset, len(data), generation)
            if data != wanted:
                place = offset + first_difference(data, wanted)
                raise AssertionError(
                    f"offset {place}: expected {_name(generation)}, found {self._found(place)}"
                )

    def generations(self, start: int = 0, end: int | None = None) -> list[int]:
        """The generation of each block; raises on one that is neither a whole stamp nor zeros."""
        found = []
        for offset, data in self.read(start, end):
            for at in range(0, len(data), BLOCK_BYTES):
                piece = data[at : at + BLOCK_BYTES]
                generation = _generation(piece)
                if piece != block(offset + at, generation)[: len(piece)]:
                    raise AssertionError(f"offset {offset + at}: {self._found(offset + at)}")
                found.append(generation)
        return found

    def digest(self) -> str:
        """SHA-256 of the whole."""
        digest = hashlib.sha256()
        for _, data in self.read():
            digest.update(data)
        return digest.hexdigest()

    def _chunks(self, start: int, end: int | None) -> Iterator[tuple[int, int]]:
        end = self.size_bytes if end is None else end
        if start % BLOCK_BYTES or (end % BLOCK_BYTES and end != self.size_bytes):
            raise ValueError(f"{start} to {end} is not on the grid of {BLOCK_BYTES}")
        for offset in range(start, end, _CHUNK_BYTES):
            yield offset, min(_CHUNK_BYTES, end - offset)

    def _found(self, place: int) -> str:
        """What stands in the block around `place`, for people."""
        start = place - place % BLOCK_BYTES
        ((_, data),) = self.read(start, min(start + BLOCK_BYTES, self.size_bytes))
        if not any(data):
            return _name(0)
        if not data.startswith(_MAGIC):
            return f"foreign data {data[:16].hex()}…"
        _, offset, generation = _FIELDS.unpack_from(data)
        whole = data == block(offset, generation)[: len(data)]
        return f"{'' if whole else 'a torn '}{_name(generation)} of offset {offset}"


@contextmanager
def opened(path: str | Path, *, write: bool = False) -> Iterator[Stamps]:
    """Open a device or a file for stamps; it is held open until the block ends."""
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
    descriptor = _open(path, flags)
    try:
        stamps = Stamps(descriptor, size_of(descriptor))
        try:
            yield stamps
        finally:
            stamps.close()
            if write:
                os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(descriptor: int) -> int:
    """The exact size of an open device or file, in bytes."""
    return os.lseek(descriptor, 0, os.SEEK_END)


def stamp(path: str | Path, generation: int, start: int = 0, end: int | None = None) -> None:
    """Open, stamp a range, close."""
    with opened(path, write=True) as stamps:
        stamps.write(generation, start, end)


def expect(path: str | Path, generation: int, start: int = 0, end: int | None = None) -> None:
    """Open, compare a range with a generation (0: zeros), close."""
    with opened(path) as stamps:
        stamps.expect(generation, start, end)


def digest(path: str | Path) -> str:
    """SHA-256 of a whole device or file."""
    with opened(path) as stamps:
        return stamps.digest()


def expect_same(path: str | Path, other: str | Path) -> None:
    """Compare two devices or files byte by byte; names the first offset that differs."""
    with opened(path) as one, opened(other) as two:
        if one.size_bytes != two.size_bytes:
            raise AssertionError(f"{path} has {one.size_bytes} bytes, {other} {two.size_bytes}")
        for (offset, data), (_, wanted) in zip(one.read(), two.read(), strict=True):
            if data != wanted:
                place = offset + first_difference(data, wanted)
                raise AssertionError(f"offset {place}: {path} and {other} differ")


def first_difference(data: bytes, wanted: bytes) -> int:
    """Where two different strings of bytes part."""
    pairs = enumerate(zip(data, wanted, strict=False))
    shorter = min(len(data), len(wanted))
    return next((place for place, (one, two) in pairs if one != two), shorter)


def _open(path: str | Path, flags: int) -> int:
    """Open past the page cache; where that cannot be, with a cache emptied first."""
    size_bytes = os.stat(path).st_size
    on_grid = stat.S_ISBLK(os.stat(path).st_mode) or size_bytes % BLOCK_BYTES == 0
    if on_grid:
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError:  # tmpfs before Linux 6.6, and a few network file systems
            pass
    descriptor = os.open(path, flags)
    if stat.S_ISBLK(os.fstat(descriptor).st_mode):
        fcntl.ioctl(descriptor, _BLKFLSBUF)
    else:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor


def _expected(offset: int, length: int, generation: int) -> bytes:
    if generation == 0:
        return bytes(length)
    starts = range(offset, offset + length, BLOCK_BYTES)
    return b"".join(block(start, generation) for start in starts)[:length]


def _generation(data: bytes) -> int:
    """The generation that a block claims; 0 where it claims none."""
    if len(data) < _FIELDS.size or not data.startswith(_MAGIC):
        return 0
    generation: int = _FIELDS.unpack_from(data)[2]
    return generation


def _name(generation: int) -> str:
    return f"generation {generation}" if generation else "zeros"
