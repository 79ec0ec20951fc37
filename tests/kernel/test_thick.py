"""Classic snapshots in trouble: stores that fill, a volume group that is full, merges, growth."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from blockd.domain.errors import StorageError
from blockd.domain.transfer import Progress
from blockd.domain.units import GIB, MIB
from blockd.service.ports import FrontSpec
from blockd.storage.lvm_thick import LvmThick
from tests.contract.lab_drivers import THICK_DISK, open_thick
from tests.contract.storage import ThickStorage
from tests.support import stamps

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio]

SIZE = 128 * MIB
DEADLINE_S = 120


@asynccontextmanager
async def thick_with(**changes: Any) -> AsyncIterator[tuple[ThickStorage, LvmThick]]:
    if not THICK_DISK.is_block_device():
        pytest.skip(f"no {THICK_DISK}: run inside scripts/lab with three disks")
    async with open_thick(THICK_DISK, **changes) as storage:
        assert isinstance(storage.driver, LvmThick)
        yield storage, storage.driver
        await storage.clean()


@pytest_asyncio.fixture
async def small() -> AsyncIterator[tuple[ThickStorage, LvmThick]]:
    """Snapshots whose stores are 8 MiB at first."""
    async with thick_with(least_store_bytes=8 * MIB, first_percent=1.0) as both:
        yield both


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not what():
            await asyncio.sleep(0.05)


def store_bytes(driver: LvmThick, snapshot: str) -> int:
    """Size of a snapshot's store, as the kernel says."""
    info = driver._info(snapshot)
    assert info is not None
    (target,) = driver._mapper.status(info.uuid)
    return int(target.params.split()[0].partition("/")[2]) * 512


async def use_up(storage: ThickStorage, driver: LvmThick, *, but_bytes: int = 0) -> str:
    """Take all free extents but a few, not completed; the name of the disk."""
    free_bytes = (await driver.pool()).free_bytes
    assert free_bytes is not None
    filler = storage.name()
    async with driver.turn():
        await driver.create(filler, free_bytes - but_bytes)
    assert (await driver.pool()).free_bytes == but_bytes
    return filler


async def roomy_snapshot(storage: ThickStorage, driver: LvmThick, front: FrontSpec) -> str:
    """A snapshot whose store holds all of the volume: as fast as a test writes, none grows."""
    snapshot = await storage.snapshot(front)
    async with driver.turn():
        await driver._revert.extend_store(snapshot, driver._sizes.ceiling(front.size_bytes))
    return snapshot


async def overwrite(storage: ThickStorage, front: FrontSpec, generation: int) -> None:
    await storage.apart(lambda: stamps.stamp(storage.path(front), generation))


async def test_snapshot_that_overflows_is_told_and_harms_nobody(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    other = await storage.volume(8 * MIB, generation=1)
    of_other = await storage.snapshot(other)
    lost, kept = await storage.snapshot(front), await roomy_snapshot(storage, driver, front)
    await use_up(storage, driver)
    await overwrite(storage, front, 2)
    losses = driver.losses()
    async with asyncio.timeout(DEADLINE_S):
        snapshot, reason = await anext(losses)
    assert snapshot == lost
    assert "Invalid" in reason
    assert "no room" in reason
    stamps.expect(storage.path(front), 2)
    stamps.expect(storage.path(other), 1)
    async with driver.reading(kept) as disk:
        stamps.expect(disk.path, 1, 0, SIZE)
    async with driver.reading(of_other) as disk:
        stamps.expect(disk.path, 1, 0, 8 * MIB)
    # LVM would say that it has grown, with status 0.
    async with driver.turn():
        with pytest.raises(StorageError, match="is lost"):
            await driver._revert.extend_store(lost, 64 * MIB)
    # Told once here, and again by the next daemon; then it can be erased as any other.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await anext(losses)
    await storage.erase(lost)
    assert lost not in await driver.disks()


async def test_snapshot_found_lost_at_start_is_told(small: tuple[ThickStorage, LvmThick]) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    lost = await storage.snapshot(front)
    await use_up(storage, driver)
    await overwrite(storage, front, 2)
    async with asyncio.timeout(DEADLINE_S):
        await anext(driver.losses())
    async with open_thick(THICK_DISK, is_fresh=False, hidden=[front.disk]) as again:
        assert isinstance(again.driver, LvmThick)
        async with asyncio.timeout(DEADLINE_S):
            assert (await anext(again.driver.losses()))[0] == lost


async def test_store_grows_ahead_of_a_writer_that_does_not_pause() -> None:
    async with thick_with(grow_percent=1.0, least_store_bytes=32 * MIB) as (storage, driver):
        front = await storage.volume(GIB, generation=0)
        snapshot = await storage.snapshot(front)
        first_bytes = store_bytes(driver, snapshot)
        assert first_bytes == driver.snapshot_bytes(GIB) < GIB // 9
        free_before = (await driver.pool()).free_bytes
        await overwrite(storage, front, 2)
        grown_bytes = store_bytes(driver, snapshot)
        assert grown_bytes > 0.9 * GIB
        free_after = (await driver.pool()).free_bytes
        assert free_before is not None
        assert free_after == free_before - (grown_bytes - first_bytes)
        async with driver.reading(snapshot) as disk:
            stamps.expect(disk.path, 0, 0, GIB)
        stamps.expect(storage.path(front), 2)


async def test_store_takes_the_last_extents_and_no_more_when_the_group_is_full(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    filler = await use_up(storage, driver, but_bytes=8 * MIB)
    await storage.apart(lambda: stamps.stamp(storage.path(front), 2, 0, 7 * MIB))
    await until(lambda: driver._free.free_bytes == 0)
    assert store_bytes(driver, snapshot) == 16 * MIB
    await storage.apart(lambda: stamps.stamp(storage.path(front), 2, 7 * MIB, 14 * MIB))
    await asyncio.sleep(1)
    assert store_bytes(driver, snapshot) == 16 * MIB
    await storage.erase(filler)  # there is room again, and it is taken
    await until(lambda: store_bytes(driver, snapshot) > 16 * MIB)
    await overwrite(storage, front, 3)
    async with driver.reading(snapshot) as disk:
        stamps.expect(disk.path, 1, 0, SIZE)


@pytest.mark.parametrize("is_reserved", [True, False])
async def test_merge_overflows_no_sibling_whose_growth_was_reserved(
    is_reserved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with thick_with(least_store_bytes=8 * MIB, first_percent=1.0) as (storage, driver):
        front = await storage.volume(SIZE, generation=1)
        snapshot = await roomy_snapshot(storage, driver, front)
        await overwrite(storage, front, 2)
        sibling = await storage.snapshot(front)
        await storage.disconnect(front)
        assert store_bytes(driver, sibling) == 8 * MIB
        free_before = (await driver.pool()).free_bytes
        async with driver.turn():
            needed = await driver.revert_bytes(front.disk, snapshot, keep=False)
            with_keep = await driver.revert_bytes(front.disk, snapshot, keep=True)
            assert needed >= SIZE - 8 * MIB
            assert with_keep >= needed + SIZE
            if is_reserved:
                await driver.reserve_for_revert(front.disk, snapshot)
                await driver.reserve_for_revert(front.disk, snapshot)
                assert (await driver.pool()).free_bytes == (free_before or 0) - needed
            else:  # what this is for: without it the merge costs the sibling

                async def none(*_: object) -> None:
                    raise StorageError("switched off")

                monkeypatch.setattr(driver._watch, "_grow", none)
            await driver.begin_merge(front.disk, snapshot)
        assert snapshot not in await driver.disks()
        progress = Progress()
        await driver.merged(front.disk, progress)
        async with driver.turn():
            await driver.end_merge(front.disk, snapshot)
            await driver.end_merge(front.disk, snapshot)
        assert progress.done_bytes <= (progress.total_bytes or 0)
        stamps.expect(await storage.connect(front), 1)
        if is_reserved:
            async with driver.reading(sibling) as disk:
                stamps.expect(disk.path, 2, 0, SIZE)
        else:
            async with asyncio.timeout(DEADLINE_S):
                assert (await anext(driver.losses()))[0] == sibling


async def test_reserve_without_room_fails_and_the_volume_is_as_it_was(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    snapshot = await roomy_snapshot(storage, driver, front)
    await overwrite(storage, front, 2)
    sibling = await storage.snapshot(front)
    await use_up(storage, driver)
    async with driver.turn():
        with pytest.raises(StorageError, match="Insufficient free space"):
            await driver.reserve_for_revert(front.disk, snapshot)
    stamps.expect(storage.path(front), 2)
    for name, generation in ((snapshot, 1), (sibling, 2)):
        async with driver.reading(name) as disk:
            stamps.expect(disk.path, generation, 0, SIZE)


async def test_merge_while_the_snapshot_or_the_disk_is_open_is_refused(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    snapshot = await roomy_snapshot(storage, driver, front)
    await overwrite(storage, front, 2)
    async with driver.turn():
        with pytest.raises(StorageError, match="is open"):
            await driver.begin_merge(front.disk, snapshot)  # its front is up
    await storage.disconnect(front)
    async with driver.reading(snapshot) as disk:
        with stamps.opened(disk.path):
            async with driver.turn():
                with pytest.raises(StorageError, match="is being read"):
                    await driver.begin_merge(front.disk, snapshot)
    stamps.expect(await storage.connect(front), 2)
    assert snapshot in await driver.disks()


async def test_merge_that_was_marked_by_a_daemon_that_died_is_begun(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    snapshot = await roomy_snapshot(storage, driver, front)
    await overwrite(storage, front, 2)
    await storage.disconnect(front)
    async with driver.turn():
        info = driver._info(front.disk)
        assert info is not None
        await driver._revert._mark(info, snapshot)
        assert driver._kind(front.disk) == "snapshot-origin"  # marked, and not begun
        assert snapshot not in await driver.disks()
        await driver.begin_merge(front.disk, snapshot)
        await driver.begin_merge(front.disk, snapshot)
    await driver.merged(front.disk, Progress())
    async with driver.turn():
        await driver.end_merge(front.disk, snapshot)
        await driver.begin_merge(front.disk, snapshot)  # merged already: nothing to do
    stamps.expect(await storage.connect(front), 1)


async def test_sibling_is_erased_while_a_merge_goes_on(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    snapshot = await roomy_snapshot(storage, driver, front)
    await overwrite(storage, front, 2)
    sibling = await storage.snapshot(front)
    await storage.disconnect(front)
    async with driver.turn():
        await driver.reserve_for_revert(front.disk, snapshot)
        await driver.begin_merge(front.disk, snapshot)
        await driver.erase([sibling])
    await driver.merged(front.disk, Progress())
    async with driver.turn():
        await driver.end_merge(front.disk, snapshot)
    assert list(await driver.disks()) == [front.disk]
    stamps.expect(await storage.connect(front), 1)


async def test_growth_under_snapshots_copies_nothing_into_them(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    snapshot = await storage.snapshot(front)
    info = driver._info(snapshot)
    assert info is not None
    _, before = await driver._watch.ask(info.uuid)
    with stamps.opened(storage.path(front)) as held:
        front = await storage.grow(front, 2 * SIZE)
        assert held.size_bytes == SIZE  # as it was opened
    pictured_bytes, after = await driver._watch.ask(info.uuid)
    assert (pictured_bytes, after.used_bytes) == (SIZE, before.used_bytes)
    with stamps.opened(storage.path(front)) as device:
        device.expect(1, 0, SIZE)
        device.expect(0, SIZE)
    assert (await driver.disks())[snapshot] == SIZE


async def test_growth_that_reached_the_metadata_only_is_finished(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    await storage.snapshot(front)
    async with driver.turn():
        await driver._lvm.extend_in_metadata(front.disk, 2 * SIZE)
    front = await storage.grow(front, 2 * SIZE)
    with stamps.opened(storage.path(front)) as device:
        device.expect(1, 0, SIZE)
        device.expect(0, SIZE)


async def test_snapshot_of_ours_made_by_somebody_else_is_not_erased_with_its_origin(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    disk = await storage.create(SIZE)
    storage.lvm("lvcreate", "-y", "-s", "-L", "8m", "-n", "theirs", f"{storage.vg}/{disk}")
    try:
        with pytest.raises(StorageError, match="is the origin of snapshot theirs"):
            await storage.erase(disk)
        assert disk in await driver.disks()
    finally:
        storage.lvm("lvremove", "-y", f"{storage.vg}/theirs")


async def test_completing_ends_soon_when_cancelled_and_may_begin_again(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(GIB)
    await storage.apart(lambda: stamps.stamp(storage.path(front), 1, 0, 300 * MIB))
    snapshot, clone, progress = await storage.snapshot(front), storage.name(), Progress()
    async with driver.turn():
        await driver.clone(clone, snapshot, GIB)
    work = asyncio.create_task(
        driver.complete(clone, GIB, old_bytes=0, source=snapshot, progress=progress)
    )
    await until(lambda: progress.done_bytes > 8 * MIB)
    began = time.monotonic()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - began < 2
    assert not [thread for thread in threading.enumerate() if "fill" in thread.name]
    assert progress.done_bytes < (progress.total_bytes or 0)
    again = Progress()
    await driver.complete(clone, GIB, old_bytes=0, source=snapshot, progress=again)
    await until(lambda: again.done_bytes == again.total_bytes)
    copy = storage.front(clone, GIB)
    stamps.expect_same(await storage.connect(copy), storage.path(front))


async def test_of_a_source_only_so_many_bytes_are_copied(
    small: tuple[ThickStorage, LvmThick],
) -> None:
    storage, driver = small
    front = await storage.volume(SIZE, generation=1)
    snapshot, disk = await storage.snapshot(front), storage.name()
    async with driver.turn():
        await driver.clone(disk, snapshot, SIZE)
    shown = SIZE - MIB - 512
    await driver.complete(
        disk, SIZE, old_bytes=0, source=snapshot, source_bytes=shown, progress=Progress()
    )
    async with driver.reading(snapshot) as source, driver.writing(disk) as copy:
        with open(source.path, "rb") as one, open(copy.path, "rb") as other:
            assert other.read(shown) == one.read(shown)
            assert not any(other.read())
