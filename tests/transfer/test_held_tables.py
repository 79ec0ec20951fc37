"""Tables that are held until an image is done, in memory and on scratch."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from blockd.domain.allocation import CLUSTER_BYTES, GROUP_CLUSTERS
from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from blockd.transfer.held_tables import MEMORY_BYTES, HeldTables, PackedTables, held_tables


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[int]:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        yield file.fileno()


def _table(chance: random.Random, entries: int) -> bytes:
    """An L2 table with some clusters in it, as a compressed image has them."""
    table = bytearray(CLUSTER_BYTES)
    first, place = chance.randrange(GROUP_CLUSTERS - entries + 1), chance.randrange(1 << 40)
    for number in range(first, first + entries):
        sectors = chance.randrange(1, 128)
        struct.pack_into(">Q", table, 8 * number, 1 << 62 | sectors << 54 | place)
        place += sectors * 512 - chance.randrange(512)
    return bytes(table)


@pytest.mark.parametrize("memory_bytes", [0, 20_000, MIB])
def test_what_was_written_last_is_read(scratch: int, memory_bytes: int) -> None:
    chance, size = random.Random(5), 16 * CLUSTER_BYTES
    held, model = PackedTables(scratch, memory_bytes), bytearray(size)
    for _ in range(150):
        offset = chance.randrange(size // 512) * 512
        length = min(chance.choice([1, 512, 4096, CLUSTER_BYTES, 3 * CLUSTER_BYTES]), size - offset)
        if chance.random() < 0.3:
            offset = offset // CLUSTER_BYTES * CLUSTER_BYTES
        data = chance.choice([bytes(length), b"\x07" * length, chance.randbytes(length)])
        held.write(offset, memoryview(data))
        model[offset : offset + length] = data
        at = chance.randrange(size)
        assert held.read(at, min(200_000, size - at)) == model[at : at + 200_000]
    assert held.read(0, size) == model
    assert (held.scratch_bytes > 0) == (memory_bytes < MIB)


def test_nearly_empty_tables_of_a_huge_disk_need_no_scratch(scratch: int) -> None:
    chance, held = random.Random(5), PackedTables(scratch, MEMORY_BYTES)
    table = _table(chance, 16)
    for number in range(10_000):  # 5 TiB
        held.write(number * CLUSTER_BYTES, memoryview(table))
    assert held.scratch_bytes == 0
    assert held.read(9_999 * CLUSTER_BYTES, CLUSTER_BYTES) == table


def test_full_tables_take_less_of_scratch_than_their_size(scratch: int) -> None:
    chance, held = random.Random(5), PackedTables(scratch, 0)
    tables = [_table(chance, GROUP_CLUSTERS) for _ in range(32)]
    for number, table in enumerate(tables):
        held.write(number * CLUSTER_BYTES, memoryview(table))
    assert 0 < held.scratch_bytes < 0.8 * 32 * CLUSTER_BYTES
    assert held.read(0, 32 * CLUSTER_BYTES) == b"".join(tables)


@pytest.mark.parametrize("harm", ["changed", "cut short"])
def test_scratch_that_was_changed_is_an_error_and_no_table(scratch: int, harm: str) -> None:
    held = PackedTables(scratch, 0)
    held.write(0, memoryview(random.Random(5).randbytes(CLUSTER_BYTES)))
    if harm == "changed":
        os.pwrite(scratch, b"!!!", 1000)
    else:
        os.truncate(scratch, 1000)
    with pytest.raises(StorageError, match="scratch is"):
        held.read(0, 1)


def test_scratch_that_is_full_is_an_error_of_its_own() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        held = PackedTables(full.fileno(), 0)
        with pytest.raises(StorageError, match="scratch cannot be written: No space left"):
            held.write(0, memoryview(b"x"))


async def test_whoever_is_told_to_leave_writes_into_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.transfer.held_tables.MEMORY_BYTES", 0)
    data, stranger = memoryview(random.Random(5).randbytes(MIB)), tmp_path / "stranger"
    stranger.write_bytes(bytes(4 * MIB))
    for _ in range(8):
        async with AsyncExitStack() as stack:
            held = await stack.enter_async_context(held_tables(tmp_path, 16 * MIB, 16 * MIB))
            writing = asyncio.create_task(held.write(0, data))
            await asyncio.sleep(0.002)
            writing.cancel()
        descriptor = os.open(stranger, os.O_RDWR)  # it gets the number of what was closed
        await asyncio.sleep(0.05)
        os.close(descriptor)
    assert not any(stranger.read_bytes())


async def test_more_than_is_allowed_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"may need 32 MiB of scratch, and 16 MiB are allowed"):
        await _open(tmp_path / "scratch", 32 * MIB)
    assert not (tmp_path / "scratch").exists()


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=rf"{tmp_path}/file/scratch: Not a directory"):
        await _open(tmp_path / "file" / "scratch", 16 * MIB)


async def test_without_tables_there_is_no_file(tmp_path: Path) -> None:
    assert (await _open(tmp_path / "scratch", 0)).scratch_bytes == 0
    assert not (tmp_path / "scratch").exists()


async def _open(folder: Path, table_bytes: int) -> HeldTables:
    """Open and leave them, with 16 MiB allowed."""
    async with held_tables(folder, table_bytes, 16 * MIB) as held:
        return held
