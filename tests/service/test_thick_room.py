"""Room in a thick class: what the trash gives up for it, and what it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import pytest

from blockd.catalog import Transaction
from blockd.domain.errors import NoRoom
from blockd.domain.job import JobKind, JobState, Phase
from blockd.domain.pool import PoolUse
from blockd.domain.snapshot import NewSnapshot
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.service.promises import recall_promises
from tests.service.thick_rig import NEW, OLD, Thick, thick
from tests.support.thick_files import ThickFileDriver

EXTENT = 4 * MIB


async def in_trash(rig: Thick) -> int:
    volumes, snapshots = await rig.rows()
    return sum(row.status is Status.DELETED for row in [*volumes, *snapshots])


# for bytes


async def test_request_that_can_never_fit_costs_nobody_his_trash(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=20 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        living = await rig.volume(5 * EXTENT)
        for number in range(6):
            volume = await rig.volume(EXTENT, name=f"t{number}")
            await rig.run.service.volumes.delete(volume.id)
        for refused in (rig.create(16 * EXTENT), rig.grow(living, 21 * EXTENT)):
            with pytest.raises(NoRoom):
                await refused
        assert await in_trash(rig) == 6
        assert (await rig.volume(15 * EXTENT)).status is Status.AVAILABLE  # all of it, to the byte
        assert await in_trash(rig) == 0
        await rig.expect_agreement()


async def test_revert_that_can_never_fit_costs_nobody_his_trash(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=10 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        volume = await rig.volume(5 * EXTENT)
        snapshot = await rig.snapshot(volume)
        await rig.snapshot(volume)
        trashed = await rig.volume(EXTENT)
        await rig.run.service.volumes.delete(trashed.id)
        with pytest.raises(NoRoom):
            await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
        await rig.run.service.volumes.undelete(trashed.id)
        await rig.expect_agreement()


async def test_disk_that_a_cancelled_grow_left_larger_counts_as_it_is(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=10 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        volume = await rig.volume(EXTENT)
        driver.gates["complete"] = asyncio.Event()
        await rig.grow(volume, 8 * EXTENT)
        await rig.until_disk(volume.disk, 8 * EXTENT)
        await rig.run.service.transfers.cancel((await rig.job_of(volume)).id)
        await rig.settled(volume)
        del driver.gates["complete"]
        await rig.run.service.volumes.delete(volume.id)
        assert (await rig.volume(10 * EXTENT)).status is Status.AVAILABLE
        await rig.expect_agreement()


async def test_kept_origin_gives_its_room_with_its_last_snapshot(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=10 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        volume = await rig.volume(6 * EXTENT)
        snapshot = await rig.snapshot(volume)
        await rig.run.service.volumes.delete(volume.id)
        with pytest.raises(NoRoom):
            await rig.create(10 * EXTENT)
        assert await in_trash(rig) == 1  # not for nothing
        await rig.run.service.snapshots.delete(snapshot.id)
        assert (await rig.volume(10 * EXTENT)).status is Status.AVAILABLE
        await rig.expect_agreement()


async def test_free_space_is_counted_again_before_trash_is_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with thick(tmp_path) as rig:
        volume = await rig.volume(EXTENT)
        await rig.run.service.volumes.delete(volume.id)
        true, counted = rig.driver.pool, 0

        async def pool() -> PoolUse:
            return await true() if counted else replace(await true(), free_bytes=0)

        async def recount() -> None:
            nonlocal counted
            counted += 1

        monkeypatch.setattr(rig.driver, "pool", pool)
        monkeypatch.setattr(rig.driver, "recount", recount)
        assert (await rig.volume(EXTENT)).status is Status.AVAILABLE
        assert counted == 1
        assert await in_trash(rig) == 1
        with pytest.raises(NoRoom):
            await rig.create(1 << 50)
        assert counted == 2
        await rig.run.service.volumes.undelete(volume.id)


# for one more snapshot of a volume


async def test_snapshot_that_is_refused_costs_nobody_his_trash(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", max_snapshots=4)
    async with thick(tmp_path, driver) as rig:
        volume = await rig.volume()
        snapshots = [await rig.snapshot(volume, f"s{number}") for number in range(4)]
        await rig.settled(await rig.run.service.volumes.revert(volume.id, snapshots[0].id, True))
        await rig.run.service.snapshots.delete(snapshots[1].id)  # leaves 4, and 5 would be one more
        with pytest.raises(NoRoom):
            await rig.snapshot(volume)
        await rig.run.service.snapshots.undelete(snapshots[1].id)
        await rig.expect_agreement()


@pytest.mark.parametrize("verb", ["snapshot", "revert"])
async def test_snapshot_without_room_costs_its_volume_no_other_one_in_the_trash(
    tmp_path: Path, verb: str
) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=1 << 30, max_snapshots=2)
    async with thick(tmp_path, driver) as rig:
        volume = await rig.volume(20 * EXTENT)
        snapshot = await rig.snapshot(volume)
        older = await rig.snapshot(volume)
        if verb == "revert":
            await rig.settled(await rig.run.service.volumes.revert(volume.id, snapshot.id, True))
        await rig.run.service.snapshots.delete(older.id)
        driver.traits = replace(driver.traits, reserve_bytes=1 << 31)
        refused: Awaitable[object] = (
            rig.snapshot(volume)
            if verb == "snapshot"
            else rig.run.service.volumes.revert(volume.id, snapshot.id, True)
        )
        with pytest.raises(NoRoom, match="are needed"):
            await refused
        await rig.run.service.snapshots.undelete(older.id)
        await rig.expect_agreement()


async def test_as_many_snapshots_make_way_as_are_too_many(tmp_path: Path) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", max_snapshots=2)
    async with thick(tmp_path, driver) as rig:
        volume, first = await rig.stamped()
        second = await rig.snapshot(volume)
        await rig.settled(await rig.run.service.volumes.revert(volume.id, first.id, True))
        for snapshot in (second, first):
            await rig.run.service.snapshots.delete(snapshot.id)
        third = await rig.snapshot(volume)
        _, left = await rig.rows()
        assert len(left) == 2
        assert {second.id, first.id}.isdisjoint(row.id for row in left)
        await rig.expect_snapshot(third, OLD)
        await rig.expect_agreement()


async def test_request_that_fails_in_its_commit_leaves_the_trash_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", max_snapshots=1)
    async with thick(tmp_path, driver) as rig:
        volume, snapshot = await rig.stamped()
        await rig.run.service.snapshots.delete(snapshot.id)
        monkeypatch.setattr("blockd.service.snapshots.remember_answer", None)
        with pytest.raises(TypeError):
            await rig.snapshot(volume)
        monkeypatch.undo()
        back = await rig.run.service.snapshots.undelete(snapshot.id)
        await rig.expect_snapshot(back, OLD)
        await rig.expect(volume, NEW)
        await rig.expect_agreement()


# promises, over a restart


def gate_of(verb: str) -> str:
    return "snapshot" if verb == "revert" else verb


async def unfinished(rig: Thick, verb: str) -> None:
    """Begin what a gate holds before it has taken any space."""
    volume = await rig.volume(2 * EXTENT)
    snapshot = await rig.snapshot(volume)
    await rig.snapshot(volume)
    rig.driver.gates[gate_of(verb)] = asyncio.Event()
    if verb == "create":
        await rig.create(6 * EXTENT)
    elif verb == "clone":
        await rig.create(6 * EXTENT, of=snapshot.id)
    elif verb == "grow":
        await rig.grow(volume, 8 * EXTENT)
    elif verb == "snapshot":
        new = NewSnapshot(volume.id, "held", None, (), public=False)
        await rig.run.service.snapshots.create(new)
        rig.run.service.volumes._operations._stop_s = 0.05
    else:
        await rig.run.service.volumes.revert(volume.id, snapshot.id, True)


@pytest.mark.parametrize("verb", ["create", "clone", "grow", "snapshot", "revert"])
async def test_what_was_promised_is_so_after_a_restart(
    tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a gate holds has the turn that counting takes: the request does not wait for it.
    monkeypatch.setattr("blockd.service.trash._COUNT_DEADLINE_S", 0.05)
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=14 * EXTENT)
    async with thick(tmp_path, driver) as rig:
        await unfinished(rig, verb)
        promised = dict(rig.run.classes["bssd"].promised)
        assert sum(promised.values()) == {"snapshot": 1, "revert": 3}.get(verb, 6) * EXTENT
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=14 * EXTENT)
    driver.gates[gate_of(verb)] = gate = asyncio.Event()
    async with thick(tmp_path, driver) as rig:
        assert rig.run.classes["bssd"].promised == promised
        with pytest.raises(NoRoom, match="are promised"):
            await rig.create(10 * EXTENT)
        gate.set()
        await rig.idle()
        volumes, snapshots = await rig.rows()
        assert [row.error for row in [*volumes, *snapshots] if row.error is not None] == []
        await rig.expect_agreement()


async def test_space_that_was_taken_before_the_restart_is_not_promised_twice(
    tmp_path: Path,
) -> None:
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=10 * EXTENT)
    driver.gates["complete"] = asyncio.Event()
    async with thick(tmp_path, driver) as rig:
        volume = await rig.create(6 * EXTENT)
        await rig.until_disk(volume.disk)
    driver = ThickFileDriver(tmp_path / "bssd", capacity_bytes=10 * EXTENT)
    driver.gates["create"] = gate = asyncio.Event()
    async with thick(tmp_path, driver) as rig:
        assert rig.run.classes["bssd"].promised == {}
        second = await rig.create(4 * EXTENT)
        gate.set()
        for created in (volume, second):
            assert (await rig.settled(created)).status is Status.AVAILABLE
        await rig.expect_agreement()


async def test_import_is_promised_its_space_after_a_restart(tmp_path: Path) -> None:
    async with thick(tmp_path) as rig:
        _, snapshot = await rig.stamped()
        imported = replace(
            snapshot, id="i", disk="blockd-i", status=Status.CREATING, origin_disk=None
        )
        volume = await rig.volume()
        job = replace(
            await rig.job_of(volume),
            id="j",
            kind=JobKind.IMPORT,
            state=JobState.QUEUED,
            phase=Phase.BEGUN,
            volume_id=None,
            snapshot_id="i",
        )

        def begun(tx: Transaction) -> None:
            tx.add_snapshot(imported)
            tx.jobs.add(job)

        await rig.run.catalog.write("as if it was begun", begun)
        await recall_promises(rig.run.catalog, rig.run.classes)
        assert rig.run.classes["bssd"].promised == {"i": EXTENT}
