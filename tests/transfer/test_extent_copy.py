"""Extents on their way from an object to a sink: in order, so many at once, to a clean end."""

from __future__ import annotations

import asyncio
import mmap
import random
from collections.abc import Sequence

import pytest

from blockd.domain.errors import StorageError
from blockd.transfer import extent_copy
from blockd.transfer.extent_copy import Piece, copy_extents
from blockd.transfer.qcow2_extents import Extents

CLUSTER = 65536
SPAN = 4 * CLUSTER
AT_ONCE = 3
CONTENT = random.Random(8).randbytes(60 * CLUSTER - 100)


@pytest.fixture(autouse=True)
def _small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extent_copy, "_SPAN_BYTES", SPAN)
    monkeypatch.setattr(extent_copy, "_GAP_BYTES", 2 * CLUSTER)


def extents() -> Extents:
    """In the object: three clusters, a gap of one, and all after a gap of four, to the cut end."""
    found = Extents(CLUSTER, 100 * CLUSTER)
    found.add(1, 0, 3)
    found.add(5, 3, 5)
    found.add(14, 20, 46)
    found.arrange()
    return found


class Store:
    """Answers when it is told to; `asked` tells from where on."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.may_answer = asyncio.Event()
        self.fails_at: int | None = None
        self._chance = random.Random(9)

    async def fill(self, offset: int, into: memoryview) -> None:
        """See `ObjectReader.fill`."""
        number = len(self.asked)
        self.asked.append(offset)
        await self.may_answer.wait()
        for _ in range(self._chance.randrange(20)):
            await asyncio.sleep(0)
        if number == self.fails_at:
            raise StorageError("the store is gone")
        into[:] = CONTENT[offset : offset + len(into)]


class Sink:
    """Holds the disk; a buffer is free again after a while, if at all."""

    def __init__(self) -> None:
        self.disk = bytearray(100 * CLUSTER)
        self.puts = 0
        self.keeps = self.fails = False
        self.kept: list[tuple[mmap.mmap, asyncio.Future[None]]] = []

    async def put(self, buffer: mmap.mmap, pieces: Sequence[Piece]) -> asyncio.Future[None]:
        """See `DiskSink.put`."""
        if self.fails:
            raise StorageError("the disk is gone")
        self.puts += 1
        for at, offset, length in ((one.at, one.disk_offset, one.length) for one in pieces):
            self.disk[offset : offset + length] = buffer[at : at + length]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.keeps:
            self.kept.append((buffer, done))
        else:
            asyncio.get_running_loop().call_later(0.001, done.set_result, None)
        return done


async def copy(store: Store, sink: Sink) -> None:
    async with asyncio.timeout(20):
        await copy_extents(extents(), len(CONTENT), store.fill, sink, at_once=AT_ONCE)


async def idle() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


async def test_answers_in_any_order_arrive_in_the_objects_order_and_once() -> None:
    store, sink = Store(), Sink()
    store.may_answer.set()
    await copy(store, sink)
    expected = bytearray(100 * CLUSTER)
    for extent in extents().in_object_order():
        data = CONTENT[extent.object_offset : extent.object_end]
        expected[extent.disk_offset : extent.disk_offset + len(data)] = data
    assert sink.disk == expected
    assert store.asked == sorted(store.asked)
    # The gap of one cluster comes with what is around it, that of four does not.
    assert store.asked[:4] == [number * CLUSTER for number in (1, 5, 9, 14)]


async def test_no_more_is_asked_for_than_there_are_buffers() -> None:
    store, sink = Store(), Sink()
    copying = asyncio.create_task(copy(store, sink))
    await idle()
    assert len(store.asked) == AT_ONCE
    sink.keeps = True
    store.may_answer.set()
    await idle()
    assert (len(store.asked), sink.puts) == (AT_ONCE, AT_ONCE)
    for _, done in sink.kept:
        done.set_result(None)
    sink.keeps = False
    await copying


@pytest.mark.parametrize("number", [0, 4, 9])
async def test_answer_that_does_not_come_is_the_error_and_nothing_goes_on(number: int) -> None:
    store, sink = Store(), Sink()
    store.fails_at = number
    store.may_answer.set()
    with pytest.raises(StorageError, match="the store is gone"):
        await copy(store, sink)
    assert len(asyncio.all_tasks()) == 1


async def test_sink_that_fails_is_the_error_and_nothing_goes_on() -> None:
    store, sink = Store(), Sink()
    sink.fails = True
    store.may_answer.set()
    with pytest.raises(StorageError, match="the disk is gone"):
        await copy(store, sink)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("answers", [False, True])
async def test_copying_that_is_cancelled_leaves_nothing_under_way(answers: bool) -> None:
    store, sink = Store(), Sink()
    sink.keeps = True
    copying = asyncio.create_task(copy(store, sink))
    if answers:
        store.may_answer.set()
    await idle()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert len(asyncio.all_tasks()) == 1
