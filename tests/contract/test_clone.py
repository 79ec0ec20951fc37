"""A clone: the snapshot's bytes, and from then on its own."""

from __future__ import annotations

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import Storage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB


async def test_clone_has_the_same_bytes_as_the_origin_at_the_snapshot(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    stamps.stamp(storage.path(front), 1, MIB, 3 * MIB)  # and zeros around it
    clone = await storage.clone(await storage.snapshot(front), SIZE)
    stamps.expect_same(storage.path(clone), storage.path(front))


async def test_clone_larger_than_the_snapshot_reads_zeros_beyond_it(storage: Storage) -> None:
    front = await storage.volume(MIB + 4096, generation=1)
    clone = await storage.clone(await storage.snapshot(front), 12 * MIB)
    with stamps.opened(storage.path(clone)) as device:
        assert device.size_bytes == 12 * MIB
        device.expect(1, 0, MIB + 4096)
        device.expect(0, MIB + 4096)


async def test_write_to_a_clone_reaches_neither_snapshot_nor_origin(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    clone = await storage.clone(snapshot, SIZE)
    stamps.stamp(storage.path(clone), 2)
    await storage.expect_snapshot(snapshot, SIZE, 1)
    stamps.expect(storage.path(front), 1)
    stamps.expect(storage.path(clone), 2)


async def test_write_to_the_origin_does_not_reach_a_clone(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    clone = await storage.clone(await storage.snapshot(front), SIZE)
    stamps.stamp(storage.path(front), 2)
    stamps.expect(storage.path(clone), 1)


async def test_clone_of_a_snapshot_whose_origin_is_erased_holds_the_bytes(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    await storage.drop(front)
    clone = await storage.clone(snapshot, SIZE)
    stamps.expect(storage.path(clone), 1)


async def test_clone_survives_the_erasing_of_its_snapshot(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    clone = await storage.clone(snapshot, SIZE)
    await storage.erase(snapshot)
    stamps.expect(storage.path(clone), 1)


async def test_clone_of_a_clone_holds_what_the_clone_held(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    clone = await storage.clone(await storage.snapshot(front), SIZE)
    stamps.stamp(storage.path(clone), 2, 0, MIB)
    second = await storage.clone(await storage.snapshot(clone), SIZE)
    with stamps.opened(storage.path(second)) as device:
        device.expect(2, 0, MIB)
        device.expect(1, MIB)


async def test_clone_over_remains_of_a_broken_off_attempt_holds_the_snapshot(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    remains = await storage.clone(snapshot, SIZE)
    stamps.stamp(storage.path(remains), 2)
    await storage.disconnect(remains)
    await storage.clone_disk(snapshot, 12 * MIB, disk=remains.disk)
    path = await storage.connect(FrontSpec(remains.volume_id, remains.disk, 12 * MIB))
    with stamps.opened(path) as device:
        device.expect(1, 0, SIZE)
        device.expect(0, SIZE)


async def test_clone_of_a_snapshot_that_does_not_exist_fails_and_leaves_nothing(
    storage: Storage,
) -> None:
    with pytest.raises(StorageError):
        await storage.clone_disk(storage.name(), SIZE)
    assert not await storage.driver.disks()
