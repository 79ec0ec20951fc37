"""What is ours, what is not, and the room it takes."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from tests.contract.storage import Storage, ThinStorage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB
_BLKDISCARD = 0x1277  # linux/fs.h


async def test_disks_lists_exactly_ours_with_their_sizes(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    snapshot = await storage.snapshot(front)
    clone = await storage.clone_disk(snapshot, 3 * SIZE)
    expected = {front.disk: SIZE, snapshot: SIZE, clone: 3 * SIZE}
    assert dict(await storage.driver.disks()) == expected
    await storage.erase(snapshot)
    del expected[snapshot]
    assert dict(await storage.driver.disks()) == expected


async def test_foreign_disks_are_neither_listed_nor_touched(storage: Storage) -> None:
    foreign, named_like_ours = "somebodys", storage.name()
    await storage.make_foreign(foreign)
    await storage.make_foreign(named_like_ours)
    ours = await storage.create(SIZE)
    assert list(await storage.driver.disks()) == [ours]
    await storage.erase(foreign, named_like_ours, ours)
    await storage.restart([])
    await storage.expect_foreign(foreign)
    await storage.expect_foreign(named_like_ours)


async def test_foreign_disk_of_the_wanted_name_is_left_alone_and_is_an_error(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    foreign = storage.name()
    await storage.make_foreign(foreign)
    with pytest.raises(StorageError):
        await storage.create(SIZE, disk=foreign)
    with pytest.raises(StorageError):
        await storage.snapshot(front, foreign)
    with pytest.raises(StorageError):
        await storage.clone_disk(snapshot, SIZE, disk=foreign)
    await storage.expect_foreign(foreign)


async def test_erase_of_unknown_names_passes_and_erases_the_rest(storage: Storage) -> None:
    disk = await storage.create(SIZE)
    await storage.erase(storage.name(), disk, storage.name())
    assert not await storage.driver.disks()
    await storage.erase(disk)


async def test_erase_of_nothing_passes(storage: Storage) -> None:
    await storage.erase()


async def test_erase_frees_the_room_that_writing_took(storage: Storage) -> None:
    empty = await storage.driver.pool()
    front = await storage.volume(16 * MIB, generation=1)
    full = await storage.driver.pool()
    assert full.used_bytes - empty.used_bytes >= 16 * MIB
    await storage.drop(front)
    assert (await storage.driver.pool()).used_bytes - empty.used_bytes < MIB


async def test_empty_disk_takes_what_the_driver_says(storage: Storage) -> None:
    await storage.driver.recount()  # other tests have removed what was somebody else's
    empty = await storage.driver.pool()
    disk = await storage.create(64 * MIB - 512)
    taken = storage.driver.volume_bytes(64 * MIB - 512)
    pool = await storage.driver.pool()
    assert taken <= pool.used_bytes - empty.used_bytes < taken + MIB
    snapshot = storage.name()
    async with storage.driver.turn():
        await storage.driver.snapshot(snapshot, disk, None)
    taken += storage.driver.snapshot_bytes(64 * MIB - 512)
    pool = await storage.driver.pool()
    assert taken <= pool.used_bytes - empty.used_bytes < taken + MIB
    assert pool.size_bytes == empty.size_bytes > pool.used_bytes
    assert (pool.mode, pool.needs_check) == ("rw", False)
    assert pool.free_bytes == (pool.size_bytes - pool.used_bytes if storage.is_thick else None)


@pytest.mark.kernel
async def test_discard_through_the_front_frees_room(thin: ThinStorage) -> None:
    front = await thin.volume(16 * MIB, generation=1)
    full = await thin.driver.pool()
    descriptor = thin.open_front(front)
    try:
        fcntl.ioctl(descriptor, _BLKDISCARD, struct.pack("=QQ", 4 * MIB, 8 * MIB))
    finally:
        os.close(descriptor)
    assert full.used_bytes - (await thin.driver.pool()).used_bytes >= 8 * MIB
    with stamps.opened(thin.path(front)) as device:
        device.expect(1, 0, 4 * MIB)
        device.expect(0, 4 * MIB, 12 * MIB)
        device.expect(1, 12 * MIB)
