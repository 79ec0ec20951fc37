"""Reads what dm-log-writes has logged: every write to a disk, in an order in which it could fall.

An entry is a write that had reached the disk when the next one did, a flush, or a mark. A flush
stands behind all that it made durable. The disk after the first N entries is one that a power cut
could have left. Source: Linux, Documentation/admin-guide/device-mapper/log-writes.rst, and
drivers/md/dm-log-writes.c for the format.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECTOR_BYTES = 512
_MAGIC, _VERSION = 0x6A736677736872, 1
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """One entry: `length_bytes` for `offset_bytes` of the disk, found in the log at `data_at`.

    Attributes:
        is_barrier: a flush, or a write past the disk's cache: what came before is durable.
        mark: what somebody wrote into the log; empty for all others.
    """

    offset_bytes: int
    length_bytes: int
    data_at: int
    is_barrier: bool
    mark: str


class WriteLog:
    """A log that is complete."""

    def __init__(self, descriptor: int) -> None:
        """Read the index.

        Raises:
            ValueError: this is no log of dm-log-writes.
        """
        self._descriptor = descriptor
        magic, version, count, sector_bytes = _SUPER.unpack(os.pread(descriptor, _SUPER.size, 0))
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError(f"not a log of dm-log-writes: magic {magic:x}, version {version}")
        self.entries = list(self._index(count, sector_bytes))

    def _index(self, count: int, sector_bytes: int) -> Iterator[Entry]:
        at = sector_bytes
        for _ in range(count):
            head = os.pread(self._descriptor, sector_bytes, at)
            sector, sectors, flags, mark_bytes = _ENTRY.unpack_from(head)
            at += sector_bytes
            mark = head[_ENTRY.size : _ENTRY.size + mark_bytes] if flags & _MARK else b""
            # A disk is free to ignore a discard, and what was there must not matter: so do we.
            length_bytes = 0 if flags & (_DISCARD | _MARK) else sectors * SECTOR_BYTES
            yield Entry(
                sector * SECTOR_BYTES,
                length_bytes,
                at,
                bool(flags & (_FLUSH | _FUA)),
                mark.rstrip(b"\0").decode(),
            )
            at += length_bytes

    def write_out(self, first: int, end: int, disk: int) -> None:
        """Carry out entries `first` to `end` (not included) on an open disk, past its cache."""
        with mmap.mmap(-1, _BUFFER_BYTES) as buffer:
            for entry in self.entries[first:end]:
                for offset in range(0, entry.length_bytes, _BUFFER_BYTES):
                    length = min(_BUFFER_BYTES, entry.length_bytes - offset)
                    buffer[:length] = os.pread(self._descriptor, length, entry.data_at + offset)
                    with memoryview(buffer)[:length] as data:
                        os.pwritev(disk, [data], entry.offset_bytes + offset)


@contextmanager
def open_log(path: Path) -> Iterator[WriteLog]:
    """The log on a device or in a file, for the length of the block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield WriteLog(descriptor)
    finally:
        os.close(descriptor)
