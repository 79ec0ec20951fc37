"""Reverting, by swap or by merge: the snapshot's bytes, every other snapshot whole, none lost."""

from __future__ import annotations

import asyncio

import pytest

from blockd.domain.errors import InUse, StorageError
from blockd.domain.units import MIB
from tests.contract.storage import Storage
from tests.contract.writer import instant, writing
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB
DEADLINE_S = 120


async def test_revert_shows_the_snapshot_under_the_same_path(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    path = storage.path(front)
    snapshot = await storage.snapshot(front)
    stamps.stamp(path, 2)
    after = await storage.revert(front, snapshot, SIZE)
    assert storage.path(after) == path
    stamps.expect(path, 1)


async def test_revert_leaves_every_snapshot_whole_and_itself_too(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    path = storage.path(front)
    first = await storage.snapshot(front)
    stamps.stamp(path, 2, 0, 2 * MIB)
    second = await storage.snapshot(front)
    stamps.stamp(path, 3, MIB, 6 * MIB)
    third = await storage.snapshot(front)
    stamps.stamp(path, 4)
    after = await storage.revert(front, second, SIZE)
    with stamps.opened(path) as device:
        device.expect(2, 0, 2 * MIB)
        device.expect(1, 2 * MIB)
    stamps.stamp(path, 5)
    await storage.expect_snapshot(first, SIZE, 1)
    with stamps.opened(storage.path(await storage.clone(second, SIZE))) as device:
        device.expect(2, 0, 2 * MIB)
        device.expect(1, 2 * MIB)
    with stamps.opened(storage.path(await storage.clone(third, SIZE))) as device:
        device.expect(2, 0, MIB)
        device.expect(3, MIB, 6 * MIB)
        device.expect(1, 6 * MIB)
    await storage.expect_snapshot(await storage.snapshot(after), SIZE, 5)


async def test_revert_twice_to_the_same_snapshot(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    for generation in (2, 3):
        stamps.stamp(storage.path(front), generation)
        front = await storage.revert(front, snapshot, SIZE)
        stamps.expect(storage.path(front), 1)


async def test_revert_with_nothing_written_since_changes_nothing(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    front = await storage.revert(front, snapshot, SIZE)
    stamps.expect(storage.path(front), 1)
    await storage.expect_snapshot(snapshot, SIZE, 1)


async def test_revert_of_a_volume_that_has_grown_keeps_its_size_and_reads_zeros_in_the_tail(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    before = await storage.snapshot(front)
    front = await storage.grow(front, 20 * MIB + 512)
    stamps.stamp(storage.path(front), 2)
    grown = await storage.snapshot(front)
    stamps.stamp(storage.path(front), 3)
    front = await storage.revert(front, before, SIZE)
    with stamps.opened(storage.path(front)) as device:
        assert device.size_bytes == 20 * MIB + 512
        device.expect(1, 0, SIZE)
        device.expect(0, SIZE)
    await storage.expect_snapshot(grown, 20 * MIB + 512, 2)


async def test_revert_keeps_each_snapshot_under_a_writer_exactly_one_instant(
    storage: Storage,
) -> None:
    front = await storage.volume(MIB)
    taken: list[tuple[int, str, int]] = []
    async with asyncio.timeout(DEADLINE_S):
        async with writing(storage, front) as writer:
            await writer.reaches(300)
            for _ in range(3):
                before = writer.position
                snapshot = await storage.snapshot(front)
                taken.append((before, snapshot, writer.position))
                await writer.reaches(writer.position + 50)
        front = await storage.revert(front, taken[1][1], MIB)
    for before, snapshot, after in taken:
        clone = await storage.clone(snapshot, MIB)
        with stamps.opened(storage.path(clone)) as device:
            assert before <= instant(device.generations()) <= after + 1


async def test_revert_of_an_open_volume_is_refused_and_changes_nothing(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    stamps.stamp(storage.path(front), 2)
    with stamps.opened(storage.path(front)), pytest.raises(InUse):
        await storage.revert(front, snapshot, SIZE)
    stamps.expect(storage.path(front), 2)
    await storage.expect_snapshot(snapshot, SIZE, 1)


async def test_erase_of_an_origin_without_its_snapshots_never_costs_a_snapshot(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    one, other = await storage.snapshot(front), await storage.snapshot(front)
    stamps.stamp(storage.path(front), 2)
    await storage.disconnect(front)
    if storage.is_thick:
        with pytest.raises(StorageError, match="is the origin of"):
            await storage.erase(front.disk, one)
    else:
        await storage.erase(front.disk)
    for snapshot in (one, other):
        await storage.expect_snapshot(snapshot, SIZE, 1)


async def test_erase_of_an_origin_with_all_of_its_snapshots_leaves_nothing(
    storage: Storage,
) -> None:
    empty = await storage.driver.pool()
    front = await storage.volume(SIZE, generation=1)
    snapshots = [await storage.snapshot(front) for _ in range(3)]
    await storage.disconnect(front)
    await storage.erase(front.disk, *snapshots)
    assert not await storage.driver.disks()
    assert (await storage.driver.pool()).used_bytes - empty.used_bytes < MIB


async def test_start_with_a_hidden_origin_makes_its_snapshots_readable(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    stamps.stamp(storage.path(front), 2)
    await storage.drop(front)
    await storage.restart([], [front.disk] if storage.is_thick else [])
    await storage.expect_snapshot(snapshot, SIZE, 1)


async def test_sealed_disk_is_read_as_it_was_written(storage: Storage) -> None:
    disk = await storage.create(SIZE)
    async with storage.driver.writing(disk) as opened:
        stamps.stamp(opened.path, 3, 0, SIZE)
    async with storage.driver.turn():
        await storage.driver.seal(disk)
        await storage.driver.seal(disk)
    await storage.expect_snapshot(disk, SIZE, 3)
    async with storage.driver.reading(disk) as opened:
        stamps.expect(opened.path, 3, 0, SIZE)
    await storage.erase(disk)
    assert disk not in await storage.driver.disks()
