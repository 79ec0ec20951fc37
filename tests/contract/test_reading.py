"""Disks that are read and written by blockd itself, and what they say is allocated."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.units import MIB
from tests.contract.storage import Storage, ThinStorage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB


def _clusters(allocation: Allocation | None) -> list[int]:
    assert allocation is not None
    return list(allocation.clusters())


def _write(path: str | Path, *offsets: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for offset in offsets:
            os.pwrite(descriptor, b"data", offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def test_reading_gives_the_snapshots_bytes_while_the_origin_is_overwritten(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    async with storage.driver.reading(snapshot) as disk:
        await storage.apart(lambda: stamps.stamp(storage.path(front), 2))
        assert disk.size_bytes >= SIZE
        stamps.expect(disk.path, 1, 0, SIZE)
    stamps.expect(storage.path(front), 2)


async def test_two_readers_share_a_disk_and_the_last_puts_it_away(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    async with storage.driver.reading(snapshot) as one:
        async with storage.driver.reading(snapshot) as other:
            stamps.expect(other.path, 1, 0, SIZE)
        stamps.expect(one.path, 1, 0, SIZE)
    await storage.erase(snapshot)
    assert snapshot not in await storage.driver.disks()


async def test_reading_holds_no_turn(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    async with storage.driver.reading(snapshot), asyncio.timeout(30):
        await storage.create(MIB)


async def test_reader_that_is_cancelled_puts_the_disk_away(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    inside = asyncio.Event()

    async def read() -> None:
        async with storage.driver.reading(snapshot):
            inside.set()
            await asyncio.Event().wait()

    reader = asyncio.create_task(read())
    await inside.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await storage.erase(snapshot)
    assert snapshot not in await storage.driver.disks()


async def test_allocation_lists_the_clusters_that_were_written_and_no_other(
    thin_storage: Storage,
) -> None:
    front = await thin_storage.volume(SIZE)
    written = [0, 3 * CLUSTER_BYTES + 5, 4 * CLUSTER_BYTES, SIZE - 4]
    _write(thin_storage.path(front), *written)
    snapshot = await thin_storage.snapshot(front)
    async with thin_storage.driver.reading(snapshot):
        allocation = await thin_storage.driver.allocation(snapshot, SIZE)
    assert _clusters(allocation) == [offset // CLUSTER_BYTES for offset in written]


async def test_allocation_of_a_size_off_the_grid_ends_with_it(thin_storage: Storage) -> None:
    size = MIB + 512
    front = await thin_storage.volume(size)
    _write(thin_storage.path(front), size - 4)
    snapshot = await thin_storage.snapshot(front)
    async with thin_storage.driver.reading(snapshot):
        allocation = await thin_storage.driver.allocation(snapshot, size)
    assert _clusters(allocation) == [16]
    assert allocation is not None
    assert allocation.allocated_bytes == 512


async def test_allocation_of_an_empty_disk_is_empty(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE)
    snapshot = await thin_storage.snapshot(front)
    async with thin_storage.driver.reading(snapshot):
        assert _clusters(await thin_storage.driver.allocation(snapshot, SIZE)) == []


async def test_what_is_written_shows_in_the_allocation_and_is_sealed_with_it(
    thin_storage: Storage,
) -> None:
    disk = await thin_storage.create(SIZE)
    async with thin_storage.driver.writing(disk) as opened:
        _write(opened.path, 5 * CLUSTER_BYTES)
        allocation = await thin_storage.driver.allocation(disk, SIZE)
        assert _clusters(allocation) == [5]
    async with thin_storage.driver.turn():
        await thin_storage.driver.seal(disk)
    async with thin_storage.driver.reading(disk) as sealed:
        descriptor = os.open(sealed.path, os.O_RDONLY)
        try:
            assert os.pread(descriptor, 4, 5 * CLUSTER_BYTES) == b"data"
        finally:
            os.close(descriptor)


async def test_allocations_asked_for_at_once_are_each_right(thin_storage: Storage) -> None:
    snapshots = {}
    for number in range(3):
        front = await thin_storage.volume(SIZE)
        _write(thin_storage.path(front), number * CLUSTER_BYTES)
        snapshots[await thin_storage.snapshot(front)] = number

    async def ask(snapshot: str) -> list[int]:
        async with thin_storage.driver.reading(snapshot):
            return _clusters(await thin_storage.driver.allocation(snapshot, SIZE))

    found = await asyncio.gather(*(ask(snapshot) for snapshot in snapshots))
    assert found == [[number] for number in snapshots.values()]


@pytest.mark.kernel
async def test_scattered_clusters_are_all_listed(thin: ThinStorage) -> None:
    size = 4096 * MIB
    front = await thin.volume(size)
    wanted = sorted(random.Random(5).sample(range(size // CLUSTER_BYTES), 3000))
    _write(thin.path(front), *(cluster * CLUSTER_BYTES for cluster in wanted))
    snapshot = await thin.snapshot(front)
    async with thin.driver.reading(snapshot):
        assert _clusters(await thin.driver.allocation(snapshot, size)) == wanted


@pytest.mark.kernel
async def test_reader_leaves_nothing_active_and_nothing_reserved(thin: ThinStorage) -> None:
    front = await thin.volume(SIZE, generation=1)
    snapshot = await thin.snapshot(front)
    node = Path(f"/dev/mapper/contract-{snapshot.replace('-', '--')}")
    async with thin.driver.reading(snapshot):
        assert node.exists()
        await thin.driver.allocation(snapshot, SIZE)
    assert not node.exists()
    status = await thin.driver._pool.status()  # type: ignore[attr-defined]
    assert not status.holds_snapshot


@pytest.mark.kernel
async def test_what_a_crash_left_active_and_reserved_is_put_away_at_the_start(
    thin: ThinStorage,
) -> None:
    front = await thin.volume(SIZE, generation=1)
    snapshot = await thin.snapshot(front)
    node = Path(f"/dev/mapper/contract-{snapshot.replace('-', '--')}")
    driver = thin.driver
    await driver._lvm.activate([snapshot])  # type: ignore[attr-defined]
    driver._mapper.message(driver._pool.uuid, "reserve_metadata_snap")  # type: ignore[attr-defined]
    assert node.exists()
    assert (await driver._pool.status()).holds_snapshot  # type: ignore[attr-defined]
    await thin.restart([front])
    assert not node.exists()
    assert not (await driver._pool.status()).holds_snapshot  # type: ignore[attr-defined]
    stamps.expect(thin.path(front), 1)
