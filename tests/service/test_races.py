"""Requests that meet: whatever comes of each, front and catalog agree in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blockd.domain.errors import BlockdError, NoRoom, PoolUnfit, TransientState
from blockd.domain.front import FrontSpec
from blockd.domain.pool import PoolUse
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume, Volume, VolumeChange
from blockd.service.volumes import Volumes
from tests.support.file_driver import FileDriver
from tests.support.service import DRIVERS, Running, running

SIZE = 4 * MIB


@pytest.fixture(params=DRIVERS)
async def run(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, default_class=request.param) as started:
        yield started


async def made(run: Running, name: str = "v") -> Volume:
    new = NewVolume(name, None, SIZE, 5000, (), None, None)
    volume = await run.service.volumes.create(new)
    while (await run.service.volumes.get(volume.id)).status is Status.CREATING:
        await asyncio.sleep(0.002)
    return await run.service.volumes.get(volume.id)


async def rest(run: Running) -> None:
    async with asyncio.timeout(20):
        while (await run.service.host.health()).queued:
            await asyncio.sleep(0.002)


async def expect_front_as_catalog_says(run: Running, volume_id: str) -> None:
    row = await run.catalog.read(lambda tx: tx.volume(volume_id))
    behind = await run.driver.disk_behind(volume_id)
    if row is None or row.status is Status.DELETED:
        assert behind is None
    else:
        assert behind == row.disk
        device = await run.service.volumes.device(volume_id)
        assert Path(device.path).stat().st_size == row.size_bytes


async def test_two_deletes_at_once_leave_no_front(run: Running) -> None:
    volume = await made(run)
    answers = await asyncio.gather(
        run.service.volumes.delete(volume.id),
        run.service.volumes.delete(volume.id),
        return_exceptions=True,
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["NoneType", "NotFound"]
    await expect_front_as_catalog_says(run, volume.id)


async def test_two_undeletes_at_once_leave_the_front(run: Running) -> None:
    volume = await made(run)
    await run.service.volumes.delete(volume.id)
    answers = await asyncio.gather(
        run.service.volumes.undelete(volume.id),
        run.service.volumes.undelete(volume.id),
        return_exceptions=True,
    )
    assert sorted(type(a).__name__ for a in answers) == ["PreconditionFailed", "Volume"]
    await expect_front_as_catalog_says(run, volume.id)


async def test_delete_that_meets_a_growth_leaves_the_grown_front(run: Running) -> None:
    volume = await made(run)
    run.driver.gates["disconnect"] = gate = asyncio.Event()
    deleting = asyncio.create_task(run.service.volumes.delete(volume.id))
    await asyncio.sleep(0)
    changing = await run.service.volumes.change(volume.id, VolumeChange(size_bytes=2 * SIZE))
    assert changing.status is Status.UPDATING
    gate.set()
    with pytest.raises(TransientState):
        await deleting
    await rest(run)
    assert (await run.service.volumes.get(volume.id)).size_bytes == 2 * SIZE
    await expect_front_as_catalog_says(run, volume.id)


@pytest.mark.parametrize("mode", ["ro", "fail"])
async def test_pool_that_takes_no_writes_costs_nobody_his_trash(
    run: Running, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await made(run)
    await run.service.volumes.delete(volume.id)
    healthy = await run.driver.pool()

    async def unfit() -> PoolUse:
        return replace(healthy, mode=mode)

    monkeypatch.setattr(run.driver, "pool", unfit)
    with pytest.raises(PoolUnfit, match="takes no writes"):
        await run.service.volumes.create(NewVolume("w", None, SIZE, 5000, (), None, None))
    monkeypatch.undo()
    assert (await run.service.volumes.undelete(volume.id)).status is Status.AVAILABLE


async def test_many_requests_for_room_erase_no_more_than_is_needed(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path / "sbs", capacity_bytes=100 * MIB)
    async with running(tmp_path, driver=driver) as run:
        volumes = [await made(run, f"v{number}") for number in range(12)]
        for volume in volumes:
            await run.service.volumes.delete(volume.id)
        empty = await driver.pool()

        async def full_until_something_is_erased() -> PoolUse:
            missing = 12 - len(await driver.disks())
            return empty if missing > 0 else replace(empty, used_bytes=99 * MIB)

        driver.pool = full_until_something_is_erased  # type: ignore[method-assign]
        new = NewVolume("w", None, SIZE, 5000, (), None, None)
        await asyncio.gather(*(run.service.volumes.create(new) for _ in range(8)))
        left = [await run.catalog.read(lambda tx, v=v: tx.volume(v.id)) for v in volumes]
        assert len([row for row in left if row is not None]) == 8


async def test_growth_that_is_under_way_counts_as_promised(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path / "sbs", capacity_bytes=100 * MIB)
    async with running(tmp_path, driver=driver) as run:
        first, second = await made(run, "a"), await made(run, "b")
        driver.gates["grow"] = gate = asyncio.Event()
        most = VolumeChange(size_bytes=900 * MIB)
        await run.service.volumes.change(first.id, most)
        with pytest.raises(NoRoom):
            await run.service.volumes.change(second.id, most)
        gate.set()
        await rest(run)


async def test_unexpected_error_settles_the_resource_within_its_turn(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = run.driver.create

    async def fail(disk: str, size_bytes: int) -> None:
        monkeypatch.setattr(run.driver, "create", create)
        raise OSError("too many open files")

    monkeypatch.setattr(run.driver, "create", fail)
    volume = await made(run)
    assert volume.status is Status.ERROR
    assert str(volume.error).endswith("too many open files")
    await rest(run)
    assert volume.disk not in await run.driver.disks()


async def test_unexpected_error_of_a_growth_is_tried_again_until_it_is_true(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front may be larger already, and in use: the old size would be a lie."""
    for module in ("operations", "jobs"):
        monkeypatch.setattr(f"blockd.service.{module}._FIRST_RETRY_S", 0.01)
    volume = await made(run)
    connect = run.driver.connect

    async def grow_and_fail(front: FrontSpec) -> None:
        monkeypatch.setattr(run.driver, "connect", connect)
        await connect(front)
        raise OSError("no space left for a link")

    monkeypatch.setattr(run.driver, "connect", grow_and_fail)
    await run.service.volumes.change(volume.id, VolumeChange(size_bytes=2 * SIZE))
    await rest(run)
    after = await run.service.volumes.get(volume.id)
    assert (after.size_bytes, after.error) == (2 * SIZE, None)
    await expect_front_as_catalog_says(run, volume.id)


async def test_start_with_a_missing_disk_serves_the_others_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        lost, whole = await made(run, "lost"), await made(run, "whole")
        async with run.driver.turn():
            await run.driver.disconnect(lost.id)
            await run.driver.erase([lost.disk])
    async with running(tmp_path) as run:
        health = await run.service.host.health()
        assert health.status == "degraded"
        assert any(lost.id in problem for problem in health.problems)
        await expect_front_as_catalog_says(run, whole.id)


VERBS: dict[str, Callable[[Volumes, str], Awaitable[object]]] = {
    "delete": lambda volumes, id_: volumes.delete(id_),
    "undelete": lambda volumes, id_: volumes.undelete(id_),
    "grow": lambda volumes, id_: volumes.change(id_, VolumeChange(size_bytes=2 * SIZE)),
    "faster": lambda volumes, id_: volumes.change(id_, VolumeChange(perf_iops=15000)),
}


@pytest.mark.parametrize("first", VERBS)
@pytest.mark.parametrize("second", VERBS)
async def test_any_two_verbs_at_once_leave_front_and_catalog_in_agreement(
    run: Running, first: str, second: str
) -> None:
    volume = await made(run)
    answers = await asyncio.gather(
        VERBS[first](run.service.volumes, volume.id),
        VERBS[second](run.service.volumes, volume.id),
        return_exceptions=True,
    )
    failures = [answer for answer in answers if isinstance(answer, Exception)]
    assert all(isinstance(failure, BlockdError) for failure in failures), failures
    await rest(run)
    await expect_front_as_catalog_says(run, volume.id)
