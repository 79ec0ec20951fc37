"""Growth: the content stays, the new part is zeros."""

from __future__ import annotations

import os

import pytest

from blockd.domain.units import MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import Storage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB
GROWN = 21 * MIB + 512


async def test_grow_keeps_the_content_and_reads_zeros_in_the_tail(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    await expect_grown(storage, await storage.grow(front, GROWN))


async def test_grow_within_the_last_extent_reads_zeros_in_the_tail(storage: Storage) -> None:
    front = await storage.volume(MIB, generation=1)
    front = await storage.grow(front, 2 * MIB)
    with stamps.opened(storage.path(front)) as device:
        assert device.size_bytes == 2 * MIB
        device.expect(1, 0, MIB)
        device.expect(0, MIB)


async def test_grow_where_an_erased_disk_was_reads_zeros_in_the_tail(storage: Storage) -> None:
    former = await storage.volume(32 * MIB, generation=9)
    front = await storage.volume(SIZE, generation=1)
    await storage.drop(former)
    await expect_grown(storage, await storage.grow(front, GROWN))


async def test_grow_with_snapshot_and_clone_leaves_both_as_they_were(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    clone = await storage.clone(snapshot, SIZE)
    front = await storage.grow(front, GROWN)
    await expect_grown(storage, front)
    stamps.stamp(storage.path(front), 2)
    with stamps.opened(storage.path(clone)) as device:
        assert device.size_bytes == SIZE
        device.expect(1)
    later = await storage.clone(snapshot, GROWN)  # the snapshot ends where it ended
    await expect_grown(storage, later)


async def test_grow_a_clone_reads_zeros_in_the_tail(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    clone = await storage.clone(await storage.snapshot(front), SIZE)
    await expect_grown(storage, await storage.grow(clone, GROWN))
    stamps.expect(storage.path(front), 1)


async def test_grow_with_an_open_front_shows_the_new_size_to_its_holder(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    descriptor = storage.open_front(front)
    try:
        front = await storage.grow(front, GROWN)
        assert stamps.size_of(descriptor) == GROWN
        assert os.pread(descriptor, 4096, SIZE) == bytes(4096)
        assert os.pread(descriptor, 4096, 4096) == stamps.block(4096, 1)
    finally:
        os.close(descriptor)
    await expect_grown(storage, front)


async def test_grow_without_a_front_is_seen_when_it_comes(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    await storage.disconnect(front)
    await expect_grown(storage, await storage.grow(front, GROWN))


async def test_grow_to_less_changes_nothing(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    before = await storage.driver.disks()
    async with storage.driver.turn():
        await storage.driver.grow(front.disk, MIB)
    assert await storage.driver.disks() == before
    stamps.expect(storage.path(front), 1)


async def test_snapshot_after_growth_holds_old_and_new_part(storage: Storage) -> None:
    front = await storage.grow(await storage.volume(SIZE, generation=1), GROWN)
    tail = 20 * MIB
    stamps.stamp(storage.path(front), 2, tail)
    clone = await storage.clone(await storage.snapshot(front), GROWN)
    with stamps.opened(storage.path(clone)) as device:
        device.expect(1, 0, SIZE)
        device.expect(0, SIZE, tail)
        device.expect(2, tail)


async def expect_grown(storage: Storage, front: FrontSpec) -> None:
    """`SIZE` of generation 1, then zeros up to `GROWN`."""
    with stamps.opened(storage.path(front)) as device:
        assert device.size_bytes == GROWN
        device.expect(1, 0, SIZE)
        device.expect(0, SIZE)
