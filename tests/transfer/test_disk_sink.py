"""What is written to a disk comes back from it, whatever the pieces; what is wrong is an error."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from blockd.domain.volume import OpenDisk
from blockd.transfer.disk_reader import open_disk
from blockd.transfer.disk_sink import DiskSink, disk_sink
from blockd.transfer.multipart import joined_etag

SIZE = 40 * MIB + 512


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    return path


async def write(sink: DiskSink, pieces: Iterable[tuple[int, bytes]]) -> None:
    """As an NBD session does it."""
    for offset, data in pieces:
        done = 0
        for place in await sink.place(offset, len(data)):
            place[:] = data[done : done + len(place)]
            done += len(place)
        await sink.written(offset, len(data))


async def digest_of(disk: Path) -> str:
    async with open_disk(OpenDisk(str(disk), SIZE), SIZE, past_cache=False) as reader:
        return await reader.digest(Allocation.full(SIZE))


def pieces_of(chance: random.Random, sizes: list[int], *, holes: bool) -> list[tuple[int, bytes]]:
    pieces, offset = [], 0
    while True:
        offset += chance.choice([0, 0, 512, CLUSTER_BYTES, 3 * MIB]) if holes else 0
        length = min(chance.choice(sizes), SIZE - offset)
        if length <= 0:
            return pieces
        data = bytes(length) if chance.random() < 0.1 else os.urandom(length)
        pieces.append((offset, data))
        offset += length


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [[2 * MIB], [512, 4096, 65536], [512, 1536, 100_352], [2 * MIB - 512, 512]],
    ids=["whole", "small", "odd", "across"],
)
async def test_pieces_of_any_size_arrive_and_give_the_digest_of_the_disk(
    disk: Path, sizes: list[int], holes: bool
) -> None:
    pieces = pieces_of(random.Random(5), sizes, holes=holes)
    expected = bytearray(SIZE)
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
        await write(sink, pieces)
        found = await sink.finish()
    assert disk.read_bytes() == expected
    assert found == await digest_of(disk)


async def test_nothing_written_is_the_digest_of_nothing(disk: Path) -> None:
    async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
        await sink.zero(0, SIZE)
        assert await sink.finish() == await digest_of(disk)


async def test_digest_is_of_what_the_disk_holds_not_of_what_was_sent(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pwrite = b"d" + os.urandom(MIB - 1), os.pwrite  # not a zero, which is what gets lost

    def lose_a_byte(descriptor: int, piece: bytes, offset: int) -> int:
        return pwrite(descriptor, bytes(1) + bytes(piece)[1:], offset) if piece else 0

    async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
        await write(sink, [(0, data)])
        right = await sink.finish()
    monkeypatch.setattr(os, "pwrite", lose_a_byte)
    async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
        sink._direct = sink._buffered  # bytes lie where Python put them
        await write(sink, [(0, b"x" + data[1:])])
        assert await sink.finish() != right


async def test_disk_is_let_go_of_only_when_nothing_writes_to_it_however_often_that_is_cancelled(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on = threading.Event(), threading.Event()
    pwrite, before = os.pwrite, set(os.listdir("/proc/self/fd"))

    def slow(descriptor: int, piece: bytes, offset: int) -> int:
        held.set()
        assert go_on.wait(20)
        return pwrite(descriptor, piece, offset)

    monkeypatch.setattr(os, "pwrite", slow)

    async def work() -> None:
        async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
            await write(sink, [(0, os.urandom(MIB))])
            await sink.finish()

    working = asyncio.create_task(work())
    await asyncio.to_thread(held.wait, 20)
    for _ in range(3):
        working.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not working.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert set(os.listdir("/proc/self/fd")) <= before | {str(max(map(int, before)) + 1)}


async def test_writer_waits_for_who_reads_back(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, preadv = threading.Event(), os.preadv

    def slow(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        assert go_on.wait(20)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    pieces = ((at, os.urandom(4096)) for at in range(0, 30 * MIB, CLUSTER_BYTES))
    async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
        writing = asyncio.create_task(write(sink, pieces))
        await asyncio.wait([writing], timeout=0.5)
        assert not writing.done()
        go_on.set()
        await writing
        assert await sink.finish() == await digest_of(disk)


async def test_write_that_the_disk_refuses_is_the_error() -> None:
    pieces = ((at, bytes(MIB)) for at in range(0, 30 * MIB, MIB))
    async with disk_sink(OpenDisk("/dev/full", SIZE), SIZE) as sink:
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            await write(sink, pieces)  # not all of them: the next one is told
        assert next(pieces, None) is not None
        with pytest.raises(StorageError, match="No space left on device"):
            await sink.finish()


async def test_disk_that_ends_early_is_an_error(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
        await write(sink, [(30 * MIB, os.urandom(MIB))])
        with pytest.raises(StorageError, match="shorter than its volume"):
            await sink.finish()


async def test_write_out_of_turn_is_refused(disk: Path) -> None:
    async with disk_sink(OpenDisk(str(disk), SIZE), SIZE) as sink:
        await write(sink, [(MIB, bytes(MIB))])
        with pytest.raises(StorageError, match="out of its turn"):
            await sink.place(MIB, 512)
        with pytest.raises(StorageError, match="zeroes at"):
            await sink.zero(0, 512)
        with pytest.raises(StorageError, match="reads what it writes"):
            await sink.read(MIB, 512)
        assert bytes(*await sink.read(2 * MIB, 512)) == bytes(512)


def test_joined_etag_is_what_a_server_says_of_an_object_in_parts() -> None:
    # As rclone 1.75.2 answered the completion of these three parts.
    parts = [
        '"f046502fa13ed980d5a65c02a2752c09"',
        '"63759414e13a1e31b6e0f25cca9fe71d"',
        '"d16fb36f0911f878998c136191af705e"',
    ]
    assert joined_etag(parts) == "06b48b3e89414e32eff0f3905a93509f-3"
    assert joined_etag([*parts[:2], '"d16fb36f0911f878998c136191af705e00"']) is None
    assert joined_etag(['"not hexadecimal"']) is None
