"""Copies the data of a plain image from its object: large GETs, several under way, none twice.

They go in the order of the object's bytes, so a server reads its file from front to back, whatever
the order of the disk's clusters in it.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from blockd.domain.units import MIB
from blockd.transfer.pages import pages
from blockd.transfer.qcow2_extents import Extent, Extents

#: One GET: asking costs a wait, and processor time, most of it the server's. For 512 MiB rclone
#: took 0.80 s in GETs of 4 MiB, 0.58 in those of 8, 0.40 in those of 16.
_SPAN_BYTES: Final = 16 * MIB
_LEAST_BUFFERS: Final = 2
#: Bytes between extents (tables, clusters of snapshots) that cost less than another GET.
_GAP_BYTES: Final = 256 * 1024

Fill = Callable[[int, memoryview], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Piece:
    """So many bytes from place `at` of a buffer, for a place on the disk."""

    at: int
    disk_offset: int
    length: int


class PieceSink(Protocol):
    """What takes data as they come: `DiskSink`, `DigestSink`."""

    async def put(self, buffer: mmap.mmap, pieces: Sequence[Piece]) -> asyncio.Future[None]:
        """See there."""


@dataclass(slots=True)
class _Span:
    """What comes with one GET."""

    begin: int
    end: int
    pieces: list[Piece] = field(default_factory=list)


async def copy_extents(
    extents: Extents, object_bytes: int, fill: Fill, sink: PieceSink, *, at_once: int
) -> None:
    """Give all data to `sink`, in the object's order.

    Args:
        fill: fills memory with the bytes of the object from an offset on.
        at_once: so many buffers there are, of 16 MiB, but at least two: each waits for an answer,
            for the answers before its own, or for the disk.

    Raises:
        Exception: what `fill` or `sink` raised first.
    """
    room, spare = asyncio.Semaphore(max(at_once, _LEAST_BUFFERS)), list[mmap.mmap]()
    waiting: deque[tuple[_Span, mmap.mmap, asyncio.Task[None]]] = deque()

    async def get(span: _Span, buffer: mmap.mmap) -> None:
        with memoryview(buffer) as view:
            length = min(span.end, object_bytes) - span.begin
            with view[:length] as into:
                await fill(span.begin, into)
            # Of a last cluster that was cut short the rest is zeros.
            view[length : span.end - span.begin] = bytes(span.end - span.begin - length)

    def give_back(buffer: mmap.mmap, writing: asyncio.Future[None]) -> None:
        if not writing.cancelled():
            writing.exception()  # the sink tells
        spare.append(buffer)
        room.release()

    async def take() -> None:
        span, buffer, getting = waiting[0]
        await asyncio.shield(getting)
        waiting.popleft()
        writing = await sink.put(buffer, span.pieces)
        writing.add_done_callback(lambda done: give_back(buffer, done))

    try:
        for span in _spans(extents.in_object_order()):
            while room.locked() and waiting:
                await take()
            await room.acquire()
            buffer = spare.pop() if spare else pages(_SPAN_BYTES)
            task = asyncio.create_task(get(span, buffer), name=f"bytes from {span.begin}")
            waiting.append((span, buffer, task))
        while waiting:
            await take()
    finally:
        for _, _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, _, task in waiting), return_exceptions=True)


def _spans(extents: Iterable[Extent]) -> Iterator[_Span]:
    """Extents cut, and put together, to what is asked for at once."""
    span = _Span(0, 0)
    for extent in extents:
        begin, disk_offset = extent.object_offset, extent.disk_offset
        while begin < extent.object_end:
            most = span.begin + _SPAN_BYTES
            if not span.pieces or begin - span.end > _GAP_BYTES or begin >= most:
                if span.pieces:
                    yield span
                span = _Span(begin, begin)
                most = begin + _SPAN_BYTES
            length = min(extent.object_end, most) - begin
            span.pieces.append(Piece(begin - span.begin, disk_offset, length))
            span.end = begin + length
            begin, disk_offset = begin + length, disk_offset + length
    if span.pieces:
        yield span
