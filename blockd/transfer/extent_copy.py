"""Copies the data of a plain image from its object: large GETs, several under way, none twice.

They go in the order of the object's bytes, so a server reads its file from front to back, whatever
the order of the disk's clusters in it.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from blockd.domain.units import MIB
from blockd.transfer.qcow2_extents import Extent, Extents
from blockd.transfer.s3 import Place

#: One GET: asking costs a wait, and processor time, most of it the server's. For 512 MiB rclone
#: took 0.80 s in GETs of 4 MiB, 0.58 in those of 8, 0.40 in those of 16.
_SPAN_BYTES: Final = 16 * MIB
_LEAST_BUFFERS: Final = 2
_MORE_GETS: Final = 2
#: Bytes between extents (tables, clusters of snapshots) that cost less than another GET.
_GAP_BYTES: Final = 256 * 1024

Fill = Callable[[int, int, Place], Awaitable[None]]


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
        fill: brings bytes of the object into memory: from where on, how many, and where to, which
            it asks for when they are about to come.
        at_once: so many buffers there are, of 16 MiB, but at least two. Each takes an answer, or
            waits for those before it, or for the disk. Two GETs more may wait for their answer.

    Raises:
        Exception: what `fill` or `sink` raised first.
    """
    buffers = _Buffers(max(at_once, _LEAST_BUFFERS))
    asking = asyncio.Semaphore(max(at_once, _LEAST_BUFFERS) + _MORE_GETS)
    asked: asyncio.Queue[tuple[_Span, asyncio.Task[mmap.mmap]] | None] = asyncio.Queue()
    under_way: set[asyncio.Task[mmap.mmap] | asyncio.Task[None]] = set()

    async def get(span: _Span, turn: _Turn) -> mmap.mmap:
        length = min(span.end, object_bytes) - span.begin
        buffer: mmap.mmap | None = None

        async def place() -> memoryview:
            nonlocal buffer
            buffer = await buffers.take(turn)
            # Of a last cluster that was cut short the rest is zeros.
            buffer[length : span.end - span.begin] = bytes(span.end - span.begin - length)
            return memoryview(buffer)[:length]

        try:
            await fill(span.begin, length, place)
        finally:
            asking.release()
        assert buffer is not None  # noqa: S101 - for the types
        return buffer

    async def ask() -> None:
        turn = _Turn(asyncio.Event(), asyncio.Event())
        turn.begins.set()
        try:
            for span in _spans(extents.in_object_order()):
                await asking.acquire()
                getting = asyncio.create_task(get(span, turn), name=f"bytes from {span.begin}")
                under_way.add(getting)
                asked.put_nowait((span, getting))
                turn = _Turn(turn.ends, asyncio.Event())
        finally:
            asked.put_nowait(None)

    asking_all = asyncio.create_task(ask(), name="asking for extents")
    under_way.add(asking_all)
    try:
        while (item := await asked.get()) is not None:
            span, getting = item
            buffer = await getting
            under_way.discard(getting)
            writing = await sink.put(buffer, span.pieces)
            writing.add_done_callback(partial(buffers.give_back, buffer))
        await asking_all
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Turn:
    """When a span may have a buffer: after the one before it, which is written before it."""

    begins: asyncio.Event
    ends: asyncio.Event


class _Buffers:
    """So many, and no more."""

    def __init__(self, count: int) -> None:
        self._room, self._spare = asyncio.Semaphore(count), list[mmap.mmap]()

    async def take(self, turn: _Turn) -> mmap.mmap:
        """Wait for a turn, and for a buffer."""
        await turn.begins.wait()
        await self._room.acquire()
        turn.ends.set()
        return self._spare.pop() if self._spare else mmap.mmap(-1, _SPAN_BYTES)

    def give_back(self, buffer: mmap.mmap, done: asyncio.Future[None]) -> None:
        """What was in it is where it shall be, or never will."""
        if not done.cancelled():
            done.exception()  # the sink tells
        self._spare.append(buffer)
        self._room.release()


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
