"""What a class offers for the day on which the catalog is lost: space for a copy, an inventory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockd.domain.errors import NoSpace
from blockd.domain.units import GIB, MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import LvmStorage, Storage

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB + 512  # off the extent grid


async def copy_space(storage: Storage, size_bytes: int) -> Path:
    """The space, at least so large."""
    async with storage.driver.turn():
        disk = await storage.driver.copy_space(size_bytes)
    assert disk.size_bytes >= size_bytes
    return Path(disk.path)


def write(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


async def test_space_for_a_copy_stays_with_its_content_and_is_no_disk(storage: Storage) -> None:
    path = await copy_space(storage, 4 * MIB)
    write(path, b"the only copy")
    volume = await storage.volume(SIZE, generation=1)
    assert set(await storage.driver.disks()) == {volume.disk}
    assert set((await storage.driver.inventory()).disks) == {volume.disk}
    await storage.drop(volume)
    await storage.restart([])
    assert await copy_space(storage, 4 * MIB) == path
    assert read(path, 13) == b"the only copy"


async def test_space_for_a_copy_grows_around_its_content(storage: Storage) -> None:
    write(await copy_space(storage, 4 * MIB), b"the only copy")
    path = await copy_space(storage, 12 * MIB)
    assert read(path, 13) == b"the only copy"
    with path.open("r+b") as file:
        file.seek(12 * MIB - 512)
        file.write(b"end".ljust(512))


@pytest.mark.kernel
async def test_space_for_a_copy_in_a_full_volume_group_is_refused(lvm: LvmStorage) -> None:
    path = await copy_space(lvm, 4 * MIB)
    write(path, b"the only copy")
    pool = await lvm.driver.pool()
    with pytest.raises(NoSpace, match="extend the volume group"):
        await copy_space(lvm, 100 * GIB)
    assert read(path, 13) == b"the only copy"
    assert (await lvm.driver.pool()).free_bytes == pool.free_bytes


async def test_inventory_tells_volumes_from_snapshots_and_fronts_tell_exact_sizes(
    storage: Storage,
) -> None:
    volume = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(volume)
    clone = await storage.clone_disk(snapshot, SIZE)
    await storage.make_foreign("not-ours")
    found = await storage.driver.inventory()
    assert set(found.disks) == {volume.disk, snapshot, clone}
    assert found.disks[volume.disk].is_writable
    assert found.disks[clone].is_writable
    assert not found.disks[snapshot].is_writable
    assert found.disks[snapshot].origin == volume.disk
    assert found.disks[clone].origin == (None if storage.is_thick else snapshot)
    for disk in found.disks.values():
        assert disk.size_bytes == found.whole_extents(SIZE)
        assert not disk.is_merging
    assert found.fronts == {volume.volume_id: FrontSpec(volume.volume_id, volume.disk, SIZE)}
    await storage.disconnect(volume)
    assert (await storage.driver.inventory()).fronts == {}


async def test_inventory_shows_a_disk_that_was_sealed_as_read_only(storage: Storage) -> None:
    disk = await storage.create(SIZE)
    async with storage.driver.turn():
        await storage.driver.seal(disk)
    assert not (await storage.driver.inventory()).disks[disk].is_writable
