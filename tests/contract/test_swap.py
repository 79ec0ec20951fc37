"""Swap, which is how a thin volume is reverted: other bytes under the same path, nothing lost."""

from __future__ import annotations

import os

import pytest

from blockd.domain.errors import InUse
from blockd.domain.units import MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import Storage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB


async def reverted(storage: Storage, front: FrontSpec, snapshot: str) -> FrontSpec:
    """Put a clone of a snapshot behind a front."""
    disk = await storage.clone_disk(snapshot, front.size_bytes)
    other = FrontSpec(front.volume_id, disk, front.size_bytes)
    await storage.swap(other)
    return other


async def test_swap_shows_the_snapshot_under_the_same_path(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    path = thin_storage.path(front)
    snapshot = await thin_storage.snapshot(front)
    stamps.stamp(path, 2)
    after = await reverted(thin_storage, front, snapshot)
    assert thin_storage.path(after) == path
    assert await thin_storage.driver.disk_behind(front.volume_id) == after.disk
    stamps.expect(path, 1)


async def test_swap_leaves_every_snapshot_whole(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    path = thin_storage.path(front)
    first = await thin_storage.snapshot(front)
    stamps.stamp(path, 2)
    second = await thin_storage.snapshot(front)
    stamps.stamp(path, 3)
    after = await reverted(thin_storage, front, first)
    stamps.stamp(path, 4)
    await thin_storage.erase(front.disk)
    await thin_storage.expect_snapshot(first, SIZE, 1)
    await thin_storage.expect_snapshot(second, SIZE, 2)
    await thin_storage.expect_snapshot(await thin_storage.snapshot(after), SIZE, 4)


async def test_swap_of_an_open_front_is_refused_and_changes_nothing(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    snapshot = await thin_storage.snapshot(front)
    stamps.stamp(thin_storage.path(front), 2)
    disk = await thin_storage.clone_disk(snapshot, 2 * SIZE)
    descriptor = thin_storage.open_front(front)
    try:
        with pytest.raises(InUse):
            await thin_storage.swap(FrontSpec(front.volume_id, disk, 2 * SIZE))
        assert await thin_storage.driver.disk_behind(front.volume_id) == front.disk
        assert stamps.size_of(descriptor) == SIZE
        os.pwrite(descriptor, stamps.block(0, 3), 0)  # still writable
    finally:
        os.close(descriptor)
    with stamps.opened(thin_storage.path(front)) as device:
        assert device.size_bytes == SIZE
        device.expect(3, 0, 4096)
        device.expect(2, 4096)


async def test_sealed_former_disk_gives_back_what_the_volume_held(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    snapshot = await thin_storage.snapshot(front)
    stamps.stamp(thin_storage.path(front), 2)
    await reverted(thin_storage, front, snapshot)
    stamps.stamp(thin_storage.path(front), 3)
    async with thin_storage.driver.turn():
        await thin_storage.driver.seal(front.disk)
        await thin_storage.driver.seal(front.disk)  # idempotent
    await thin_storage.expect_snapshot(front.disk, SIZE, 2)
    stamps.expect(thin_storage.path(front), 3)


async def test_swap_to_a_larger_disk_shows_the_larger_size(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    snapshot = await thin_storage.snapshot(front)
    stamps.stamp(thin_storage.path(front), 2)
    size_bytes = 12 * MIB + 512
    disk = await thin_storage.clone_disk(snapshot, size_bytes)
    await thin_storage.swap(FrontSpec(front.volume_id, disk, size_bytes))
    with stamps.opened(thin_storage.path(front), write=True) as device:
        assert device.size_bytes == size_bytes
        device.expect(1, 0, SIZE)
        device.expect(0, SIZE)
        device.write(3, 12 * MIB)
        device.expect(3, 12 * MIB)


async def test_swap_back_shows_the_former_bytes(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    snapshot = await thin_storage.snapshot(front)
    stamps.stamp(thin_storage.path(front), 2)
    await reverted(thin_storage, front, snapshot)
    stamps.stamp(thin_storage.path(front), 3)
    await thin_storage.swap(front)
    stamps.expect(thin_storage.path(front), 2)


async def test_swap_again_to_the_same_disk_changes_nothing(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    await thin_storage.swap(front)
    stamps.expect(thin_storage.path(front), 1)


async def test_swap_without_a_front_makes_it(thin_storage: Storage) -> None:
    front = thin_storage.front(await thin_storage.create(SIZE), SIZE)
    await thin_storage.swap(front)
    assert await thin_storage.driver.disk_behind(front.volume_id) == front.disk
    stamps.expect(thin_storage.path(front), 0)
