"""The pool behind a thin class: what is added to it, and who tells of it."""

from __future__ import annotations

import asyncio
import time

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.pool import PoolUse
from blockd.domain.units import MIB
from tests.contract.storage import FileStorage, Storage, ThinStorage
from tests.support import stamps
from tests.support.file_pool import FilePool

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB


async def _counted(storage: Storage) -> PoolUse:
    """The pool, with what its volume group has left; some is."""
    if isinstance(storage, FileStorage):
        assert isinstance(storage.driver, FilePool)
        storage.driver.group_free_bytes = 32 * MIB
    await storage.driver.recount()
    return await storage.driver.pool()


async def test_extended_data_are_there_at_once_and_volumes_are_whole(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    before = await _counted(thin_storage)
    await thin_storage.driver.extend_pool(before.size_bytes + 1, 0)
    after = await thin_storage.driver.pool()
    assert after.size_bytes == before.size_bytes + before.extent_bytes
    assert after.metadata_size_bytes == before.metadata_size_bytes
    assert _left(after) == _left(before) - before.extent_bytes
    assert (after.mode, after.trouble) == ("rw", None)
    stamps.expect(thin_storage.path(front), 1)


async def test_extended_metadata_take_their_size_twice(thin_storage: Storage) -> None:
    before = await _counted(thin_storage)
    await thin_storage.driver.extend_pool(0, before.metadata_size_bytes + before.extent_bytes)
    after = await thin_storage.driver.pool()
    assert after.metadata_size_bytes == before.metadata_size_bytes + before.extent_bytes
    assert after.size_bytes == before.size_bytes
    assert _left(after) == _left(before) - 2 * before.extent_bytes


async def test_extension_to_what_there_is_already_passes_and_adds_nothing(
    thin_storage: Storage,
) -> None:
    before = await _counted(thin_storage)
    await thin_storage.driver.extend_pool(before.size_bytes, before.metadata_size_bytes)
    assert await thin_storage.driver.pool() == before


async def test_extension_beyond_the_volume_group_is_refused_and_changes_nothing(
    thin_storage: Storage,
) -> None:
    before = await _counted(thin_storage)
    too_many_bytes = before.size_bytes + _left(before) + before.extent_bytes
    with pytest.raises(StorageError):
        await thin_storage.driver.extend_pool(too_many_bytes, 0)
    assert await thin_storage.driver.pool() == before
    await thin_storage.create(SIZE)  # the turn is free again


async def test_extensions_at_once_are_made_one_after_the_other(thin_storage: Storage) -> None:
    before = await _counted(thin_storage)
    sizes = [before.size_bytes + count * before.extent_bytes for count in (1, 2)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(thin_storage.driver.extend_pool(size, 0) for size in sizes))
    assert (await thin_storage.driver.pool()).size_bytes == sizes[-1]


async def test_pool_event_ends_in_time_when_nothing_happens(storage: Storage) -> None:
    began = time.monotonic()
    async with asyncio.timeout(10):
        await storage.driver.pool_event(0.05)
        await storage.driver.pool_event(0.05)
    assert time.monotonic() - began >= 0.05


async def test_thick_class_has_no_pool_to_extend(thick_storage: Storage) -> None:
    with pytest.raises(StorageError):
        await thick_storage.driver.extend_pool(SIZE, 0)


@pytest.mark.kernel
async def test_pool_event_tells_of_room_that_others_took(thin: ThinStorage) -> None:
    before = await _counted(thin)
    await thin.driver.pool_event(0.01)  # what there was before
    thin.lvm("lvcreate", "-y", "-l", "1", "-n", "taken", thin.vg)
    try:
        async with asyncio.timeout(10):
            async with thin.driver.turn():
                await thin.driver.disks()
            await thin.driver.pool_event(60)
        assert _left(await thin.driver.pool()) == _left(before) - before.extent_bytes
    finally:
        thin.lvm("lvremove", "-y", f"{thin.vg}/taken")


def _left(pool: PoolUse) -> int:
    assert pool.group_free_bytes is not None
    return pool.group_free_bytes
