"""A snapshot: one instant, whole whatever happens to others."""

from __future__ import annotations

import asyncio

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from tests.contract.storage import Storage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB


async def test_snapshot_holds_its_instant_while_the_origin_is_overwritten(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    stamps.stamp(storage.path(front), 2)
    await storage.expect_snapshot(snapshot, SIZE, 1)
    stamps.expect(storage.path(front), 2)


async def test_snapshot_of_an_odd_size_holds_every_byte_to_the_last_sector(
    storage: Storage,
) -> None:
    front = await storage.volume(MIB + 512, generation=1)
    snapshot = await storage.snapshot(front)
    await storage.expect_snapshot(snapshot, MIB + 512, 1)


async def test_snapshot_of_an_empty_disk_reads_zeros(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    snapshot = await storage.snapshot(front)
    stamps.stamp(storage.path(front), 1)
    await storage.expect_snapshot(snapshot, SIZE, 0)


async def test_many_snapshots_erased_in_any_order_leave_the_others_whole(
    storage: Storage,
) -> None:
    front = await storage.volume(4 * MIB)
    snapshots = {}
    for generation in range(1, 7):
        stamps.stamp(storage.path(front), generation)
        snapshots[generation] = await storage.snapshot(front)
    for erased in ((3,), (1, 6), (4,)):
        await storage.erase(*(snapshots.pop(generation) for generation in erased))
    assert sorted(snapshots) == [2, 5]
    for generation, snapshot in snapshots.items():
        await storage.expect_snapshot(snapshot, 4 * MIB, generation)
    stamps.expect(storage.path(front), 6)


async def test_snapshot_while_the_front_is_absent_holds_the_bytes(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    await storage.disconnect(front)
    snapshot = await storage.snapshot(front)
    await storage.expect_snapshot(snapshot, SIZE, 1)


async def test_snapshot_without_a_volume_holds_the_bytes(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    await storage.disconnect(front)
    snapshot = storage.name()
    async with storage.driver.turn():
        await storage.driver.snapshot(snapshot, front.disk, None)
    await storage.expect_snapshot(snapshot, SIZE, 1)


async def test_snapshot_survives_the_erasing_of_its_origin(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    await storage.drop(front)
    kept = {snapshot, front.disk} if storage.is_thick else {snapshot}
    assert set(await storage.driver.disks()) == kept
    await storage.expect_snapshot(snapshot, SIZE, 1)


async def test_snapshot_over_remains_of_a_broken_off_attempt_holds_the_new_instant(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    stamps.stamp(storage.path(front), 2)
    await storage.snapshot(front, snapshot)
    await storage.expect_snapshot(snapshot, SIZE, 2)


async def test_snapshot_of_a_disk_that_does_not_exist_fails_and_leaves_nothing(
    storage: Storage,
) -> None:
    async with storage.driver.turn():
        with pytest.raises(StorageError):
            await storage.driver.snapshot(storage.name(), storage.name(), None)
    assert not await storage.driver.disks()


async def test_snapshot_with_an_open_front_leaves_it_open_and_writable(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    with stamps.opened(storage.path(front), write=True) as device:
        snapshot = await storage.snapshot(front)
        assert storage.driver.is_open(front.volume_id)
        device.write(2)
    await storage.expect_snapshot(snapshot, SIZE, 1)
    stamps.expect(storage.path(front), 2)


async def test_snapshots_of_two_volumes_at_once_hold_each_its_own(storage: Storage) -> None:
    one = await storage.volume(SIZE, generation=1)
    two = await storage.volume(SIZE, generation=2)
    of_one, of_two = await asyncio.gather(storage.snapshot(one), storage.snapshot(two))
    stamps.stamp(storage.path(one), 3)
    stamps.stamp(storage.path(two), 4)
    await storage.expect_snapshot(of_one, SIZE, 1)
    await storage.expect_snapshot(of_two, SIZE, 2)
