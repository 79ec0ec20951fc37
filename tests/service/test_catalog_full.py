"""A catalog that cannot be written: nothing is half-done, reads go on, and it passes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from blockd.domain.effects import SideEffects
from blockd.domain.errors import CatalogUnavailable
from blockd.domain.snapshot import NewSnapshot, Snapshot, SnapshotChange
from blockd.domain.states import Status
from blockd.domain.volume import NewVolume, Volume, VolumeChange
from tests.support import stamps
from tests.support.service import DRIVERS, Running, running

SIZE = 4 * 1024**2


class FullDisk(SideEffects):
    """While `is_full`, no commit comes about; the lab has the real thing."""

    is_full = False

    def before(self, name: str) -> None:
        if self.is_full and name.startswith("commit "):
            raise sqlite3.OperationalError("database or disk is full")


@pytest.fixture
def disk() -> FullDisk:
    return FullDisk()


@pytest.fixture(params=DRIVERS)
async def run(
    tmp_path: Path, request: pytest.FixtureRequest, disk: FullDisk
) -> AsyncIterator[Running]:
    async with running(tmp_path, default_class=request.param, effects=disk) as started:
        yield started


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await what():
            await asyncio.sleep(0.005)


def empty(snapshot_id: str | None = None) -> NewVolume:
    return NewVolume("v", None, SIZE, 5000, (), None, snapshot_id)


async def at_rest(run: Running, row: Volume | Snapshot) -> None:
    async def is_at_rest() -> bool:
        seen: Volume | Snapshot
        if isinstance(row, Volume):
            seen = await run.service.volumes.get(row.id)
        else:
            seen = await run.service.snapshots.get(row.id)
        return seen.status is Status.AVAILABLE

    await until(is_at_rest)


async def is_well(run: Running) -> bool:
    health = await run.service.host.health()
    return health.status == "ok" and not health.queued


async def test_each_verb_is_refused_while_the_catalog_is_full_and_works_afterwards(
    run: Running, disk: FullDisk
) -> None:
    volumes, snapshots = run.service.volumes, run.service.snapshots
    volume = await volumes.create(empty())
    await at_rest(run, volume)
    path = (await volumes.device(volume.id)).path
    stamps.stamp(path, 1)
    snapshot = await snapshots.create(NewSnapshot(volume.id, "s", None, (), False))
    await at_rest(run, snapshot)
    stamps.stamp(path, 2)
    gone = await volumes.create(empty())
    await at_rest(run, gone)
    await volumes.delete(gone.id)
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: volumes.create(empty()),
        lambda: volumes.create(empty(snapshot.id)),
        lambda: snapshots.create(NewSnapshot(volume.id, "t", None, (), False)),
        lambda: snapshots.change(snapshot.id, SnapshotChange(name="other")),
        lambda: volumes.change(volume.id, VolumeChange(size_bytes=2 * SIZE)),
        lambda: volumes.undelete(gone.id),
        lambda: volumes.revert(volume.id, snapshot.id, False),
        lambda: volumes.delete(volume.id),
        lambda: snapshots.delete(snapshot.id),
    ]
    disk.is_full = True
    before = await run.driver.disks()
    for verb in verbs:
        with pytest.raises(CatalogUnavailable, match="cannot be written: database or disk is"):
            await verb()
    assert await run.driver.disks() == before
    assert (await volumes.get(volume.id)).status is Status.AVAILABLE
    assert (await snapshots.get(snapshot.id)).status is Status.AVAILABLE
    stamps.expect((await volumes.device(volume.id)).path, 2)
    health = await run.service.host.health()
    assert [line for line in health.problems if "catalog.sqlite cannot be written" in line]
    disk.is_full = False
    await until(lambda: is_well(run))  # though nobody asks for anything
    for verb in verbs[:-2]:
        await verb()
        await until(lambda: is_well(run))
    stamps.expect((await volumes.device(volume.id)).path, 1, 0, SIZE)


async def test_verb_whose_last_commit_finds_no_room_is_finished_when_there_is_some(
    run: Running, disk: FullDisk
) -> None:
    gate = run.driver.gates["connect"] = asyncio.Event()
    volume = await run.service.volumes.create(empty())
    disk.is_full = True
    gate.set()

    async def is_ill() -> bool:
        return bool((await run.service.host.health()).problems)

    await until(is_ill)
    assert (await run.service.volumes.get(volume.id)).status is Status.CREATING
    disk.is_full = False
    await at_rest(run, volume)
    await until(lambda: is_well(run))
    assert set(await run.driver.disks()) == {volume.disk}
    stamps.expect((await run.service.volumes.device(volume.id)).path, 0)
