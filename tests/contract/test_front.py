"""Fronts: connected, disconnected, held open, and found again by a driver that starts."""

from __future__ import annotations

import os
import subprocess

import pytest

from blockd.domain.errors import InUse, StorageError
from blockd.domain.units import MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import Storage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB


async def test_connect_twice_changes_nothing(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    await storage.connect(front)
    stamps.expect(storage.path(front), 1)


async def test_connect_over_another_disk_is_an_error_and_changes_nothing(
    storage: Storage,
) -> None:
    front = await storage.volume(SIZE, generation=1)
    other = FrontSpec(front.volume_id, await storage.create(SIZE), SIZE)
    with pytest.raises(StorageError):
        await storage.connect(other)
    assert await storage.driver.disk_behind(front.volume_id) == front.disk
    stamps.expect(storage.path(front), 1)


async def test_connect_over_a_missing_disk_is_an_error_and_makes_no_front(
    storage: Storage,
) -> None:
    front = storage.front(storage.name(), SIZE)
    with pytest.raises(StorageError):
        await storage.connect(front)
    assert await storage.driver.disk_behind(front.volume_id) is None


async def test_connect_larger_than_the_disk_is_an_error_and_makes_no_front(
    storage: Storage,
) -> None:
    front = storage.front(await storage.create(SIZE), 64 * MIB)
    with pytest.raises(StorageError):
        await storage.connect(front)
    assert await storage.driver.disk_behind(front.volume_id) is None


async def test_disconnect_and_connect_again_keep_the_bytes(storage: Storage) -> None:
    front = await storage.volume(MIB + 512, generation=1)
    await storage.disconnect(front)
    assert await storage.driver.disk_behind(front.volume_id) is None
    assert not storage.path(front).exists()
    stamps.expect(await storage.connect(front), 1)


async def test_disconnect_of_an_open_front_is_refused(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    descriptor = storage.open_front(front)
    try:
        with pytest.raises(InUse) as caught:
            await storage.disconnect(front)
        assert caught.value.volume_id == front.volume_id
        assert await storage.driver.disk_behind(front.volume_id) == front.disk
        assert os.pread(descriptor, 4096, 0) == stamps.block(0, 1)
    finally:
        os.close(descriptor)
    stamps.expect(storage.path(front), 1)
    await storage.disconnect(front)


async def test_disconnect_without_a_front_passes(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    await storage.disconnect(front)
    await storage.disconnect(front)


async def test_erase_of_a_disk_behind_a_front_is_refused(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    with pytest.raises(StorageError):
        await storage.erase(front.disk)
    stamps.expect(storage.path(front), 1)


async def test_is_open_follows_open_and_close_at_once(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    other = await storage.volume(SIZE)
    assert not storage.driver.is_open(front.volume_id)
    for flags in (os.O_RDONLY, os.O_RDWR):
        descriptor = os.open(storage.path(front), flags)
        assert storage.driver.is_open(front.volume_id)
        assert not storage.driver.is_open(other.volume_id)
        os.close(descriptor)
        assert not storage.driver.is_open(front.volume_id)


async def test_is_open_until_the_last_holder_closes(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    descriptors = [storage.open_front(front), storage.open_front(front)]
    os.close(descriptors.pop())
    assert storage.driver.is_open(front.volume_id)
    os.close(descriptors.pop())
    assert not storage.driver.is_open(front.volume_id)


async def test_is_open_sees_another_process(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    descriptor = storage.open_front(front)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[descriptor]) as holder:
        os.close(descriptor)
        assert storage.driver.is_open(front.volume_id)
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait()
        assert not storage.driver.is_open(front.volume_id)


async def test_is_open_without_a_front_is_false(storage: Storage) -> None:
    front = storage.front(storage.name(), SIZE)
    assert not storage.driver.is_open(front.volume_id)


async def test_start_keeps_listed_fronts_and_makes_those_that_are_missing(
    storage: Storage,
) -> None:
    kept = await storage.volume(SIZE, generation=1)
    missing = await storage.volume(MIB + 512, generation=2)
    await storage.disconnect(missing)
    await storage.restart([kept, missing])
    assert await storage.driver.disk_behind(kept.volume_id) == kept.disk
    stamps.expect(storage.path(kept), 1)
    stamps.expect(storage.path(missing), 2)


async def test_start_removes_unlisted_fronts_that_nobody_holds_open(storage: Storage) -> None:
    idle = await storage.volume(SIZE, generation=1)
    held = await storage.volume(SIZE, generation=2)
    descriptor = storage.open_front(held)
    try:
        await storage.restart([])
        assert await storage.driver.disk_behind(idle.volume_id) is None
        assert await storage.driver.disk_behind(held.volume_id) == held.disk
        assert os.pread(descriptor, 4096, 0) == stamps.block(0, 2)
    finally:
        os.close(descriptor)
    stamps.expect(await storage.connect(idle), 1)


async def test_start_leaves_a_front_over_another_disk_than_listed(storage: Storage) -> None:
    """A revert that was cut short between swap and commit: its journal entry will finish it."""
    front = await storage.volume(SIZE, generation=1)
    listed = FrontSpec(front.volume_id, await storage.create(SIZE), SIZE)
    await storage.restart([listed])
    assert await storage.driver.disk_behind(front.volume_id) == front.disk
    stamps.expect(storage.path(front), 1)


async def test_start_with_one_disk_missing_makes_the_other_fronts(storage: Storage) -> None:
    there = await storage.volume(SIZE, generation=1)
    await storage.disconnect(there)
    missing = storage.front(storage.name(), SIZE)
    await storage.restart([missing, there])
    assert await storage.driver.disk_behind(missing.volume_id) is None
    stamps.expect(storage.path(there), 1)
