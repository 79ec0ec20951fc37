"""What a thick class keeps, loses and has room for: origins, snapshots, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockd.domain.errors import (
    NoRoom,
    NotFound,
    PreconditionFailed,
    StorageError,
)
from blockd.domain.job import JobState, Phase
from blockd.domain.snapshot import NewSnapshot
from blockd.domain.states import Status
from blockd.domain.transfer import Progress
from blockd.domain.units import MIB
from blockd.service.erasures import add_erase
from tests.service.thick_rig import NEW, OLD, Thick, thick
from tests.support.thick_files import ThickFileDriver

REASON = "the disk is on fire"
EXTENT = 4 * MIB


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Thick]:
    async with thick(tmp_path) as started:
        yield started
        await started.expect_agreement()


async def names_of_kept(rig: Thick) -> list[str]:
    return await rig.run.catalog.read(lambda tx: tx.disks.kept_origins("bssd"))


# kept origins


async def test_origin_of_an_erased_volume_stays_until_its_last_snapshot_is_erased(
    tmp_path: Path,
) -> None:
    async with thick(tmp_path, keep_s=0.0) as rig:
        volume, first = await rig.stamped()
        second = await rig.snapshot(volume)
        await rig.run.service.volumes.delete(volume.id)
        await rig.expect_agreement()
        assert await names_of_kept(rig) == [volume.disk]
        assert (await rig.run.service.snapshots.get(first.id)).parent is None
        await rig.expect_snapshot(first, OLD)
        await rig.expect_snapshot(second, NEW)
        await rig.run.service.snapshots.delete(second.id)
        await rig.expect_agreement()
        await rig.expect_snapshot(first, OLD)
    async with thick(tmp_path, keep_s=0.0) as rig:  # and over a restart
        assert rig.driver.never_activated == set()
        await rig.expect_snapshot(first, OLD)
        await rig.run.service.snapshots.delete(first.id)
        await rig.expect_agreement()
        assert await rig.driver.disks() == {}


async def test_origin_in_the_trash_comes_back_whole_whatever_is_erased_around_it(
    tmp_path: Path,
) -> None:
    async with thick(tmp_path) as rig:
        volume, snapshot = await rig.stamped()
        await rig.run.service.volumes.delete(volume.id)
        await rig.expect_snapshot(snapshot, OLD)
        await rig.run.service.snapshots.delete(snapshot.id)
    async with thick(tmp_path) as rig:
        assert rig.driver.never_activated == set()
        back = await rig.run.service.snapshots.undelete(snapshot.id)
        await rig.expect_snapshot(back, OLD)
        await rig.run.service.volumes.undelete(volume.id)
        await rig.expect(volume, NEW)
        await rig.expect_agreement()


async def test_erasure_that_names_an_origin_in_need_is_refused(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    await rig.run.service.volumes.delete(volume.id)
    row = (await rig.rows())[0][0]

    def forge(tx: object) -> object:
        tx.remove_volume(row.id)  # type: ignore[attr-defined]
        return add_erase(tx, "bssd", [row.disk], [])  # type: ignore[arg-type]

    rig.run.service.volumes._operations.submit(
        await rig.run.catalog.write("forged", forge)  # type: ignore[arg-type]
    )
    await rig.idle()
    await rig.expect_snapshot(snapshot, OLD)
    await rig.run.catalog.write("put right", lambda tx: tx.disks.keep_origin(row.disk, "bssd", 1))


async def test_snapshot_that_fails_after_its_volume_was_erased_takes_the_origin_along(
    tmp_path: Path,
) -> None:
    async with thick(tmp_path, keep_s=0.0) as rig:
        volume = await rig.volume()
        rig.driver.gates["snapshot"] = gate = asyncio.Event()
        rig.driver.fail_next["snapshot"] = StorageError(REASON)
        new = NewSnapshot(volume.id, "s", None, (), public=False)
        taken = await rig.run.service.snapshots.create(new)
        await rig.run.service.volumes.delete(volume.id)
        assert await names_of_kept(rig) == [volume.disk]
        gate.set()
        assert (await rig.picture(taken)).status is Status.ERROR
        await rig.expect_agreement()
        assert await rig.driver.disks() == {}


# losses


async def test_lost_snapshot_is_in_error_with_the_reason_and_nothing_else_is_touched(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    sibling = await rig.snapshot(volume)
    rig.driver.lose(snapshot.disk, "its store is full")
    async with asyncio.timeout(10):
        while (row := await rig.run.service.snapshots.get(snapshot.id)).status is not Status.ERROR:
            await asyncio.sleep(0.002)
    assert row.error == "its store is full"
    await rig.idle()
    assert snapshot.disk not in await rig.driver.disks()
    await rig.expect(volume, NEW)
    await rig.expect_snapshot(sibling, NEW)
    with pytest.raises(PreconditionFailed, match="its store is full"):
        await rig.create(of=snapshot.id)
    await rig.run.service.snapshots.delete(snapshot.id)
    back = await rig.run.service.snapshots.undelete(snapshot.id)
    assert back.status is Status.ERROR


async def test_clone_of_a_snapshot_that_is_lost_meanwhile_fails_with_its_reason(
    rig: Thick,
) -> None:
    _, snapshot = await rig.stamped()
    rig.driver.gates["complete"] = asyncio.Event()
    clone = await rig.create(of=snapshot.id)
    await rig.until_disk(clone.disk)
    job = await rig.job_of(clone)
    rig.driver.lose(snapshot.disk, "its store is full")
    done = await rig.ended(job)
    assert (done.state, done.error) == (
        JobState.FAILED,
        f"snapshot {snapshot.id}: its store is full",
    )
    row = await rig.run.service.volumes.get(clone.id)
    assert (row.status, row.error) == (Status.ERROR, done.error)


async def test_snapshot_that_is_lost_in_the_trash_or_while_nobody_ran_is_told_of(
    tmp_path: Path,
) -> None:
    async with thick(tmp_path) as rig:
        volume, snapshot = await rig.stamped()
        second = await rig.snapshot(volume)
        await rig.run.service.snapshots.delete(snapshot.id)
    for disk in (snapshot.disk, second.disk):
        ThickFileDriver(tmp_path / "bssd").lose(disk, "overflowed in the night")
    async with thick(tmp_path) as rig:
        async with asyncio.timeout(10):
            while len(await rig.driver.disks()) > 1:
                await asyncio.sleep(0.002)
        row = await rig.run.service.snapshots.get(snapshot.id, include_deleted=True)
        assert (row.status, row.error) == (Status.DELETED, "overflowed in the night")
        await rig.expect(volume, NEW)
        await rig.expect_agreement()


async def test_last_snapshot_of_a_kept_origin_takes_it_along_when_it_is_lost(
    tmp_path: Path,
) -> None:
    async with thick(tmp_path, keep_s=0.0) as rig:
        volume, snapshot = await rig.stamped()
        await rig.run.service.volumes.delete(volume.id)
        await rig.idle()
        rig.driver.lose(snapshot.disk, "its store is full")
        async with asyncio.timeout(10):
            while await rig.driver.disks():
                await asyncio.sleep(0.002)
        await rig.expect_agreement()


# room


async def test_only_so_many_snapshots_of_one_volume_and_the_trash_gives_way(
    tmp_path: Path,
) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", max_snapshots=2)
    async with thick(tmp_path, driver) as rig:
        volume, first = await rig.stamped()
        second = await rig.snapshot(volume)
        with pytest.raises(NoRoom, match=r"has 2 snapshots.*allows 2 of one volume") as caught:
            await rig.snapshot(volume)
        assert (caught.value.resource, caught.value.quota, caught.value.current) == (
            "snapshot",
            2,
            2,
        )
        other = await rig.volume()
        await rig.snapshot(other)  # a limit of each volume
        await rig.run.service.snapshots.delete(first.id)
        third = await rig.snapshot(volume)
        with pytest.raises(NotFound):
            await rig.run.service.snapshots.get(first.id, include_deleted=True)
        # A revert may keep one more than the limit, and not two.
        await rig.settled(await rig.run.service.volumes.revert(volume.id, second.id, True))
        with pytest.raises(NoRoom):
            await rig.run.service.volumes.revert(volume.id, third.id, True)
        await rig.settled(await rig.run.service.volumes.revert(volume.id, third.id, False))
        await rig.expect_agreement()


async def test_room_is_exact_and_what_is_promised_counts(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=8 * EXTENT, reserve_bytes=EXTENT)
    async with thick(tmp_path, driver) as rig:
        driver.gates["create"] = gate = asyncio.Event()
        first = await rig.create(4 * EXTENT)
        with pytest.raises(NoRoom, match="16 MiB are promised"):
            await rig.create(4 * EXTENT)
        second = await rig.create(3 * EXTENT)
        gate.set()
        for volume in (first, second):
            assert (await rig.settled(volume)).status is Status.AVAILABLE
        for refused in (rig.create(MIB), rig.grow(first, 5 * EXTENT), rig.snapshot(first)):
            with pytest.raises(NoRoom, match="4 MiB of 32 MiB are free, 4 MiB are the reserve"):
                await refused
        assert len((await rig.rows())[0]) == 2
        await rig.run.service.volumes.delete(second.id)
        assert (await rig.volume(2 * EXTENT)).status is Status.AVAILABLE  # the trash gave way
        await rig.expect_agreement()


async def test_volume_in_the_trash_is_not_erased_for_room_while_a_snapshot_keeps_its_disk(
    tmp_path: Path,
) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=4 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        volume, snapshot = await rig.stamped()
        await rig.run.service.volumes.delete(volume.id)
        with pytest.raises(NoRoom):
            await rig.create(4 * EXTENT)
        await rig.run.service.volumes.undelete(volume.id)
        await rig.expect(volume, NEW)
        await rig.run.service.volumes.delete(volume.id)
        await rig.run.service.snapshots.delete(snapshot.id)
        assert (await rig.volume(4 * EXTENT)).status is Status.AVAILABLE  # now both gave way
        await rig.expect_agreement()


async def test_job_that_ends_before_it_took_its_space_gives_the_promise_back(
    rig: Thick,
) -> None:
    bssd = rig.run.classes["bssd"]
    volume = await rig.volume()
    job = await rig.job_of(volume)
    bssd.promised[volume.id] = 1  # as a request does it that finds its job waiting
    await rig.run.catalog.write(
        "as if it waited", lambda tx: tx.jobs.put(replace(job, phase=Phase.BEGUN))
    )
    await rig.run.service.transfers._jobs._steps.fail(job.id, None, Progress())
    assert bssd.promised == {}


async def test_revert_without_room_for_its_stores_changes_nothing(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=5 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        volume = await rig.volume(2 * EXTENT)
        snapshot = await rig.snapshot(volume)
        await rig.snapshot(volume)
        with pytest.raises(NoRoom, match="are needed"):
            await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
        assert (await rig.run.service.volumes.get(volume.id)).status is Status.AVAILABLE
        await rig.expect_agreement()


async def test_revert_of_a_grown_volume_needs_room_to_take_its_snapshot_again(
    tmp_path: Path,
) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=22 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        volume = await rig.volume(2 * EXTENT)
        snapshot = await rig.snapshot(volume)
        volume = await rig.settled(await rig.grow(volume, 21 * EXTENT))
        with pytest.raises(NoRoom, match="8 MiB are needed, 0 B of"):
            await rig.run.service.volumes.revert(volume.id, snapshot.id, False)
        await rig.expect_agreement()
