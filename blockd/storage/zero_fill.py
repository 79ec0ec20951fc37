"""Bringing new space of a thick disk to what it shall hold: zeros, or the bytes of another disk.

LVM hands out what the last owner left there. Every byte is written once: a run of zeros by
BLKZEROOUT (which a disk may do by itself), the rest from the source. Blocking work has a thread of
its own, which ends at the next piece when the waiter leaves.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from blockd.domain.errors import StorageError
from blockd.domain.transfer import Progress
from blockd.domain.units import MIB

_BLKZEROOUT = 0x127F  # linux/fs.h
#: A slow disk (100 MB/s) writes as much in a fraction of a second, so a cancellation is soon heard.
_ZERO_BYTES = 32 * MIB
_COPY_BYTES = 4 * MIB
_BLOCK_BYTES = 4096
#: Shorter gaps of zeros are written, as a call for each would cost more.
_GAP_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Fill:
    """What is to be written: `path` from `begin` to `end`.

    Attributes:
        source: path of a disk whose bytes they become, as far as `source_bytes`; zeros behind.
        looked_at_bytes: of the beginning, which is read first and not written where it is zeros
            already: writing there may cost snapshots a copy.
    """

    path: str
    begin_bytes: int
    end_bytes: int
    source: str | None = None
    source_bytes: int = 0
    looked_at_bytes: int = 0


class _Stopped(Exception):
    """Whoever waited has left."""


async def fill(order: Fill, progress: Progress) -> None:
    """Carry it out; durable when it returns. A cancellation ends it at the next piece.

    Raises:
        StorageError: the disk cannot be written, or the source not read.
    """
    loop, stopped = asyncio.get_running_loop(), threading.Event()
    progress.total_bytes = max(order.end_bytes - order.begin_bytes, 0)

    def add(count_bytes: int) -> None:
        if stopped.is_set():
            raise _Stopped
        loop.call_soon_threadsafe(progress.add, count_bytes)

    work = asyncio.ensure_future(asyncio.to_thread(_fill, order, add))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        stopped.set()
        # Nobody else may have the disk before the last piece is written.
        await asyncio.gather(work, return_exceptions=True)
        raise
    except OSError as err:
        raise StorageError(f"{order.path}: {err.strerror}") from err


def _fill(order: Fill, add: Callable[[int], None]) -> None:
    # O_DIRECT: as much as a whole disk must not go through the page cache.
    target = os.open(order.path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        at = order.begin_bytes
        if order.source is None:
            looked_at = min(order.begin_bytes + order.looked_at_bytes, order.end_bytes)
            at = _zero_what_is_not(target, at, looked_at, add)
        else:
            at = _copy(target, order.source, order, add)
        _zero(target, at, order.end_bytes, add)
        os.fsync(target)
    except _Stopped:
        return
    finally:
        os.close(target)


def _zero(target: int, begin: int, end: int, add: Callable[[int], None]) -> None:
    while begin < end:
        count = min(_ZERO_BYTES, end - begin)
        fcntl.ioctl(target, _BLKZEROOUT, struct.pack("=QQ", begin, count))
        begin += count
        add(count)


def _zero_what_is_not(target: int, begin: int, end: int, add: Callable[[int], None]) -> int:
    """Zero the blocks that hold something; answers `end`."""
    buffer = mmap.mmap(-1, _COPY_BYTES)
    at = begin
    while at < end:
        count = _read(target, memoryview(buffer)[: min(_COPY_BYTES, end - at)], at)
        for offset, length in _runs(buffer[:count]):
            fcntl.ioctl(target, _BLKZEROOUT, struct.pack("=QQ", at + offset, length))
        at += count
        add(count)
    return end


def _copy(target: int, source_path: str, order: Fill, add: Callable[[int], None]) -> int:
    """Copy what is not zero, and zero the rest; answers how far it came."""
    end = min(order.source_bytes, order.end_bytes)
    at = written_to = order.begin_bytes
    buffer = mmap.mmap(-1, _COPY_BYTES)
    view = memoryview(buffer)
    source = os.open(source_path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        while at < end:
            count = _read(source, view[: min(_COPY_BYTES, end - at)], at)
            for offset, length in _runs(buffer[:count]):
                _zero(target, written_to, at + offset, add)
                _write(target, view[offset : offset + length], at + offset)
                written_to = at + offset + length
                add(length)
            at += count
            if at - written_to >= _ZERO_BYTES:
                _zero(target, written_to, at, add)
                written_to = at
            add(0)
    finally:
        os.close(source)
    return written_to


def _read(disk: int, view: memoryview, at: int) -> int:
    count = os.preadv(disk, [view], at)
    if not count:
        raise OSError(errno.ENXIO, f"the disk ends at byte {at}")
    return count


def _write(target: int, view: memoryview, at: int) -> None:
    while view:
        count = os.pwrite(target, view, at)
        view, at = view[count:], at + count


_ZEROS = bytes(_COPY_BYTES)


def _runs(data: bytes) -> list[tuple[int, int]]:
    """(offset, length) of what is not zeros; a short gap of zeros is part of a run."""
    if data == _ZEROS[: len(data)]:
        return []
    runs: list[tuple[int, int]] = []
    for offset in range(0, len(data), _BLOCK_BYTES):
        block = data[offset : offset + _BLOCK_BYTES]
        if block == _ZEROS[: len(block)]:
            continue
        begin, length = runs[-1] if runs else (0, -_COPY_BYTES)
        if offset - (begin + length) <= _GAP_BYTES:
            runs[-1] = (begin, offset + len(block) - begin)
        else:
            runs.append((offset, len(block)))
    return runs
