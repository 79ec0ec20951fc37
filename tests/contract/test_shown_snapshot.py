"""Snapshots that are shown: a read-only device with the bytes of the instant, until hidden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockd.domain.errors import InUse, StorageError
from blockd.domain.front import FrontSpec
from blockd.domain.units import MIB
from tests.contract.storage import LvmStorage, Storage, ThinStorage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 8 * MIB


async def test_shown_snapshot_has_the_bytes_and_the_size_of_its_instant(storage: Storage) -> None:
    size = SIZE + 512
    front = await storage.volume(size, generation=1)
    shown = await storage.show(await storage.snapshot(front), size)
    await storage.apart(lambda: stamps.stamp(storage.path(front), 2))
    stamps.expect(storage.path(shown), 1)
    assert _length(storage.path(shown)) == size
    stamps.expect(storage.path(front), 2)


async def test_shown_twice_is_shown_once(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    await storage.connect(shown)
    stamps.expect(storage.path(shown), 1)
    await storage.hide(shown)
    assert await storage.driver.disk_behind(shown.volume_id) is None


async def test_hidden_twice_is_hidden_and_can_be_erased(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    await storage.hide(shown)
    await storage.hide(shown)
    assert not storage.path(shown).exists()
    await storage.erase(shown.disk)
    assert shown.disk not in await storage.driver.disks()


async def test_hide_while_it_is_open_is_refused_and_it_stays(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    with storage.path(shown).open("rb"):
        assert storage.driver.is_open(shown.volume_id)
        with pytest.raises(InUse):
            await storage.hide(shown)
    assert not storage.driver.is_open(shown.volume_id)
    stamps.expect(storage.path(shown), 1)


async def test_shown_snapshot_is_not_erased(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    with pytest.raises(StorageError):
        await storage.erase(shown.disk)
    stamps.expect(storage.path(shown), 1)


async def test_shown_snapshot_is_read_and_cloned_like_any(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    async with storage.driver.reading(shown.disk) as opened:
        stamps.expect(opened.path, 1, 0, SIZE)
    await storage.expect_snapshot(shown.disk, SIZE, 1)
    stamps.expect(storage.path(shown), 1)


async def test_what_still_reads_a_snapshot_that_is_hidden_reads_on(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    async with storage.driver.reading(shown.disk) as opened:
        await storage.hide(shown)
        stamps.expect(opened.path, 1, 0, SIZE)


async def test_shown_snapshot_outlives_a_start_that_lists_it(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    await storage.restart([front, shown])
    stamps.expect(storage.path(shown), 1)


async def test_shown_snapshot_is_hidden_by_a_start_that_does_not_list_it(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    await storage.restart([front])
    assert not storage.path(shown).exists()
    await storage.erase(shown.disk)


async def test_hidden_snapshot_is_shown_by_a_start_that_lists_it(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    await storage.hide(shown)
    await storage.restart([front, shown])
    stamps.expect(storage.path(shown), 1)


async def test_inventory_tells_a_shown_snapshot_from_a_volume(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    shown = await storage.show(await storage.snapshot(front), SIZE)
    async with storage.driver.turn():
        found, ailments = await storage.driver.examine()
    assert found.fronts == {front.volume_id: front, shown.volume_id: shown}
    assert list(ailments) == []


async def test_volume_reverted_to_another_snapshot_leaves_what_is_shown(storage: Storage) -> None:
    front = await storage.volume(SIZE, generation=1)
    first = await storage.snapshot(front)
    await storage.apart(lambda: stamps.stamp(storage.path(front), 2))
    shown = await storage.show(await storage.snapshot(front), SIZE)
    await storage.apart(lambda: stamps.stamp(storage.path(front), 3))
    with storage.path(shown).open("rb"):
        front = await storage.revert(front, first, SIZE)
    stamps.expect(storage.path(front), 1)
    stamps.expect(storage.path(shown), 2)


async def test_thin_volume_reverted_to_what_is_shown_leaves_it(thin_storage: Storage) -> None:
    front = await thin_storage.volume(SIZE, generation=1)
    shown = await thin_storage.show(await thin_storage.snapshot(front), SIZE)
    stamps.stamp(thin_storage.path(front), 2)
    with thin_storage.path(shown).open("rb"):
        front = await thin_storage.revert(front, shown.disk, SIZE)
        stamps.stamp(thin_storage.path(front), 3)
    stamps.expect(thin_storage.path(shown), 1)


async def test_thick_volume_that_is_dropped_leaves_what_is_shown(thick_storage: Storage) -> None:
    front = await thick_storage.volume(SIZE, generation=1)
    shown = await thick_storage.show(await thick_storage.snapshot(front), SIZE)
    await thick_storage.drop(front)
    stamps.expect(thick_storage.path(shown), 1)
    await thick_storage.restart([shown], [front.disk])
    stamps.expect(thick_storage.path(shown), 1)


@pytest.mark.kernel
async def test_shown_snapshot_refuses_writes(lvm: LvmStorage) -> None:
    front = await lvm.volume(SIZE, generation=1)
    shown = await lvm.show(await lvm.snapshot(front), SIZE)
    with pytest.raises(PermissionError):
        _write(lvm.path(shown))
    stamps.expect(lvm.path(shown), 1)


@pytest.mark.kernel
async def test_device_of_a_snapshot_that_can_be_written_to_is_not_taken_for_it(
    lvm: LvmStorage,
) -> None:
    front = await lvm.volume(SIZE, generation=1)
    with pytest.raises(StorageError, match="can be written to"):
        await lvm.connect(FrontSpec(front.volume_id, front.disk, SIZE, is_read_only=True))


@pytest.mark.kernel
async def test_thin_disk_stays_active_for_as_long_as_it_is_shown(thin: ThinStorage) -> None:
    front = await thin.volume(SIZE, generation=1)
    snapshot = await thin.snapshot(front)
    node = Path(f"/dev/mapper/contract-{snapshot.replace('-', '--')}")
    shown = await thin.show(snapshot, SIZE)
    async with thin.driver.reading(snapshot):
        pass
    assert node.exists()
    assert list(thin.driver.problems()) == []
    await thin.hide(shown)
    assert not node.exists()


@pytest.mark.kernel
async def test_start_that_hides_a_thin_snapshot_puts_its_disk_away(thin: ThinStorage) -> None:
    front = await thin.volume(SIZE, generation=1)
    snapshot = await thin.snapshot(front)
    await thin.show(snapshot, SIZE)
    await thin.restart([front])
    assert not Path(f"/dev/mapper/contract-{snapshot.replace('-', '--')}").exists()


@pytest.mark.kernel
@pytest.mark.parametrize("again", [1, 2])
async def test_shown_snapshot_is_there_again_after_a_reboot(lvm: LvmStorage, again: int) -> None:
    """As a reboot leaves it: no device, no link, the volume group inactive."""
    front = await lvm.volume(SIZE, generation=1)
    shown = await lvm.show(await lvm.snapshot(front), SIZE)
    for _ in range(again):
        await lvm.disconnect(front)
        await lvm.disconnect(shown)
        lvm.lvm("vgchange", "-an", lvm.vg)
        if isinstance(lvm, ThinStorage):
            lvm.lvm("lvchange", "-ay", f"{lvm.vg}/pool")  # as opening the class does
        assert not lvm.path(shown).exists()
        await lvm.restart([front, shown])
        stamps.expect(lvm.path(shown), 1)
        stamps.expect(lvm.path(front), 1)


def _write(path: Path) -> None:
    with path.open("r+b", buffering=0) as device:
        device.write(b"\0" * 4096)
        os.fsync(device.fileno())


def _length(path: Path) -> int:
    with path.open("rb") as device:
        return device.seek(0, os.SEEK_END)
