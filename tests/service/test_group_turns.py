"""A group that waits for turns or room, and what others do meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from blockd.domain.errors import HostExhausted, NoRoom
from blockd.domain.snapshot import NewSnapshot
from blockd.domain.states import Status
from blockd.domain.volume import VolumeChange
from blockd.service import operations
from tests.service.group_rig import SIZE, Host, expect_bytes, group_of, host
from tests.support import stamps
from tests.support.file_driver import FileDriver


async def _begun(run: Host, snapshots: int) -> None:
    async with asyncio.timeout(20):
        while len(await run.snapshots()) < snapshots:
            await asyncio.sleep(0.005)


async def _at_rest(run: Host, volume_id: str) -> None:
    async with asyncio.timeout(20):
        while (await run.service.volumes.get(volume_id)).status is not Status.AVAILABLE:
            await asyncio.sleep(0.005)


async def test_volume_reverted_while_the_group_waits_is_taken_as_it_is_then(
    tmp_path: Path,
) -> None:
    async with host(tmp_path) as run:
        thick, thin = [await run.volume(name, 1) for name in ("bssd", "sbs")]
        wanted = NewSnapshot(thin, "s", None, (), public=False)
        before = await run.service.snapshots.create(wanted)
        await run.idle()
        async with run.drivers["bssd"].turn():
            asked = asyncio.create_task(run.service.groups.create(group_of(thick, thin)))
            await _begun(run, 3)
            await run.service.volumes.revert(thin, before.id, keep_previous=True)
            await _at_rest(run, thin)
            for volume in (thick, thin):
                stamps.stamp((await run.service.volumes.device(volume)).path, 2)
        for row in (await asked).snapshots:
            await expect_bytes(run, row, 2)


async def test_group_gets_its_turns_while_both_classes_always_have_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_MORE_TURNS_S", 0.1)
    async with host(tmp_path) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd")]

        async def load(driver: FileDriver) -> None:
            while True:
                async with driver.turn():
                    await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as tasks:
            loads = [
                tasks.create_task(load(each)) for each in run.drivers.values() for _ in range(20)
            ]
            await asyncio.sleep(0.1)
            try:
                async with asyncio.timeout(10):
                    group = await run.service.groups.create(group_of(*volumes))
            finally:
                for task in loads:
                    task.cancel()
        assert {row.status for row in group.snapshots} == {Status.AVAILABLE}
        await run.expect_quiet()


async def test_class_without_room_costs_no_trash_in_another(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        bssd, sbs = run.drivers["bssd"], run.drivers["sbs"]
        thick, thin = [await run.volume(name, 1) for name in ("bssd", "sbs")]
        kept = await run.service.snapshots.create(NewSnapshot(thick, "s", None, (), public=False))
        await run.idle()
        await run.service.snapshots.delete(kept.id)
        one_bytes = bssd.snapshot_bytes(SIZE)
        bssd.capacity_bytes = bssd.volume_bytes(SIZE) + one_bytes
        await bssd.recount()
        sbs.capacity_bytes = SIZE
        with pytest.raises(NoRoom):
            await run.service.groups.create(group_of(thick, thin))
        await run.idle()
        assert [row.id for row in await run.snapshots()] == [kept.id]


async def test_promise_outlives_an_attempt_that_will_be_tried_again(tmp_path: Path) -> None:
    async with host(tmp_path, patience_s=0.1) as run:
        thick = await run.volume("bssd", 1)
        driver = run.drivers["bssd"]
        driver.fail_next["still"] = HostExhausted("no process")  # type: ignore[assignment]
        group = await run.service.groups.create(group_of(thick))
        assert {row.status for row in group.snapshots} == {Status.CREATING}
        assert run.classes["bssd"].promised == {group.id: driver.snapshot_bytes(SIZE)}
        await run.idle()
        await run.expect_quiet()


async def test_volume_grown_while_the_group_waits_is_taken_with_its_new_size(
    tmp_path: Path,
) -> None:
    async with host(tmp_path) as run:
        thick, thin = [await run.volume(name, 1) for name in ("bssd", "sbs")]
        async with run.drivers["bssd"].turn():
            asked = asyncio.create_task(run.service.groups.create(group_of(thick, thin)))
            await _begun(run, 2)
            await run.service.volumes.change(thin, VolumeChange(size_bytes=2 * SIZE))
            await _at_rest(run, thin)
        assert [row.size_bytes for row in (await asked).snapshots] == [SIZE, 2 * SIZE]


async def test_promise_of_a_single_snapshot_outlives_such_an_attempt_too(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        thick = await run.volume("bssd", 1)
        driver = run.drivers["bssd"]
        exhausted = HostExhausted("no process")
        driver.fail_next["snapshot"] = exhausted  # type: ignore[assignment]
        wanted = NewSnapshot(thick, "s", None, (), public=False)
        made = await run.service.snapshots.create(wanted)
        async with asyncio.timeout(20):
            while not any("no process" in line for line in await run.problems()):
                await asyncio.sleep(0.005)
        assert run.classes["bssd"].promised == {made.id: driver.snapshot_bytes(SIZE)}
        await run.idle()
        await run.expect_quiet()
