"""Storage that refuses, at each step of each verb: what the resource says, what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from blockd.domain.errors import (
    InUse,
    NoRoom,
    NotFound,
    PreconditionFailed,
    StorageError,
    TransientState,
)
from blockd.domain.listing import Page, SnapshotFilter, VolumeFilter
from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume, Volume, VolumeChange
from blockd.service.erasures import add_erase
from tests.support import stamps
from tests.support.file_driver import FileDriver
from tests.support.service import DRIVERS, Running, running

REASON = "the disk is on fire"
SIZE = 4 * MIB


@pytest.fixture(params=DRIVERS)
def default_class(request: pytest.FixtureRequest) -> str:
    """Each class in turn."""
    return str(request.param)


@pytest.fixture
async def run(tmp_path: Path, default_class: str) -> AsyncIterator[Running]:
    async with running(tmp_path, default_class=default_class) as started:
        yield started
        await until(lambda: idle(started))
        await expect_no_leftovers(started)


@pytest.fixture
async def thin_run(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as started:
        yield started
        await until(lambda: idle(started))
        await expect_no_leftovers(started)


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await what():
            await asyncio.sleep(0.005)


async def idle(run: Running) -> bool:
    return (await run.service.host.health()).queued == 0


async def expect_no_leftovers(run: Running) -> None:
    """Disks are those of whole rows; the journal is empty; nothing is in a passing state."""
    everything = Page(size=100)
    volumes, _ = await run.catalog.read(
        lambda tx: tx.page_of_volumes(VolumeFilter(include_deleted=True), everything)
    )
    snapshots, _ = await run.catalog.read(
        lambda tx: tx.page_of_snapshots(SnapshotFilter(include_deleted=True), everything)
    )
    rows: list[Volume | Snapshot] = [*volumes, *snapshots]
    kept = await run.catalog.read(lambda tx: tx.disks.kept_origins("bssd"))
    whole = {row.disk for row in rows if row.error is None or row.status is Status.AVAILABLE}
    assert whole.isdisjoint(kept)
    assert whole | set(kept) == set(await run.driver.disks())
    assert await run.catalog.read(lambda tx: tx.intents()) == []
    assert await run.catalog.read(lambda tx: tx.jobs.unfinished()) == []
    assert not {row.status for row in rows} & {Status.CREATING, Status.UPDATING}


def empty(size_bytes: int = SIZE, snapshot_id: str | None = None) -> NewVolume:
    return NewVolume("v", None, size_bytes, 5000, (), None, snapshot_id)


async def settled_volume(run: Running, volume: Volume) -> Volume:
    async def done() -> bool:
        seen = await run.service.volumes.get(volume.id)
        return seen.status not in (Status.CREATING, Status.UPDATING)

    await until(done)
    return await run.service.volumes.get(volume.id)


async def settled_snapshot(run: Running, snapshot: Snapshot) -> Snapshot:
    async def done() -> bool:
        return (await run.service.snapshots.get(snapshot.id)).status is not Status.CREATING

    await until(done)
    return await run.service.snapshots.get(snapshot.id)


async def volume_with_snapshot(run: Running) -> tuple[Volume, Snapshot]:
    """A volume that holds generation 2, and a snapshot of it with generation 1."""
    volume = await settled_volume(run, await run.service.volumes.create(empty()))
    path = (await run.service.volumes.device(volume.id)).path
    stamps.stamp(path, 1)
    new = NewSnapshot(volume.id, "s", None, (), False)
    snapshot = await settled_snapshot(run, await run.service.snapshots.create(new))
    stamps.stamp(path, 2)
    return volume, snapshot


@pytest.mark.parametrize("step", ["create", "connect"])
async def test_volume_that_cannot_be_made_is_in_error_with_the_reason(
    run: Running, step: str
) -> None:
    run.driver.fail_next[step] = StorageError(REASON)
    volume = await settled_volume(run, await run.service.volumes.create(empty()))
    assert (volume.status, volume.error) == (Status.ERROR, REASON)
    with pytest.raises(PreconditionFailed):
        await run.service.volumes.device(volume.id)
    await run.service.volumes.delete(volume.id)
    again = await run.service.volumes.undelete(volume.id)
    assert (again.status, again.error) == (Status.ERROR, REASON)


@pytest.mark.parametrize("step", ["clone", "connect"])
async def test_clone_that_cannot_be_made_is_in_error_and_its_snapshot_is_whole(
    run: Running, step: str
) -> None:
    _, snapshot = await volume_with_snapshot(run)
    run.driver.fail_next[step] = StorageError(REASON)
    clone = await settled_volume(run, await run.service.volumes.create(empty(SIZE, snapshot.id)))
    assert (clone.status, clone.error) == (Status.ERROR, REASON)
    fine = await settled_volume(run, await run.service.volumes.create(empty(SIZE, snapshot.id)))
    stamps.expect((await run.service.volumes.device(fine.id)).path, 1)


async def test_snapshot_that_cannot_be_taken_is_in_error_and_its_volume_is_whole(
    run: Running,
) -> None:
    volume, _ = await volume_with_snapshot(run)
    run.driver.fail_next["snapshot"] = StorageError(REASON)
    new = NewSnapshot(volume.id, "broken", None, (), False)
    snapshot = await settled_snapshot(run, await run.service.snapshots.create(new))
    assert (snapshot.status, snapshot.error) == (Status.ERROR, REASON)
    with pytest.raises(PreconditionFailed):
        await run.service.volumes.create(empty(SIZE, snapshot.id))
    assert (await run.service.volumes.get(volume.id)).status is Status.AVAILABLE


@pytest.mark.parametrize("step", ["grow", "connect"])
async def test_volume_that_cannot_grow_keeps_its_size_and_says_why(
    run: Running, step: str, default_class: str
) -> None:
    if (default_class, step) == ("bssd", "connect"):
        step = "complete"  # what comes after it only goes forward: test_thick.py
    volume, _ = await volume_with_snapshot(run)
    run.driver.fail_next[step] = StorageError(REASON)
    changing = await run.service.volumes.change(volume.id, VolumeChange(size_bytes=2 * SIZE))
    assert (changing.status, changing.size_bytes) == (Status.UPDATING, SIZE)
    after = await settled_volume(run, changing)
    assert (after.status, after.size_bytes, after.error) == (Status.AVAILABLE, SIZE, REASON)
    stamps.expect((await run.service.volumes.device(volume.id)).path, 2)
    changing = await run.service.volumes.change(volume.id, VolumeChange(size_bytes=2 * SIZE))
    after = await settled_volume(run, changing)
    assert (after.size_bytes, after.error) == (2 * SIZE, None)


@pytest.mark.parametrize("step", ["clone", "swap"])
@pytest.mark.parametrize("keep", [True, False])
async def test_revert_refused_before_the_swap_leaves_the_volume_as_it_was(
    thin_run: Running, step: str, keep: bool
) -> None:
    volume, snapshot = await volume_with_snapshot(thin_run)
    thin_run.driver.fail_next[step] = StorageError(REASON)
    reverting = await thin_run.service.volumes.revert(volume.id, snapshot.id, keep)
    after = await settled_volume(thin_run, reverting)
    assert (after.status, after.error, after.disk) == (Status.AVAILABLE, REASON, volume.disk)
    stamps.expect((await thin_run.service.volumes.device(volume.id)).path, 2)
    found, _ = await thin_run.catalog.read(
        lambda tx: tx.page_of_snapshots(SnapshotFilter(), Page())
    )
    assert [item.id for item in found] == [snapshot.id]


@pytest.mark.parametrize(("step", "keep"), [("seal", True), ("erase", False)])
async def test_revert_that_fails_after_the_swap_is_finished_and_loses_nothing(
    thin_run: Running, step: str, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.service.operations._FIRST_RETRY_S", 0.01)
    volume, snapshot = await volume_with_snapshot(thin_run)
    thin_run.driver.fail_next[step] = StorageError(REASON)
    after = await settled_volume(
        thin_run, await thin_run.service.volumes.revert(volume.id, snapshot.id, keep)
    )
    assert (after.status, after.error) == (Status.AVAILABLE, None)
    stamps.expect((await thin_run.service.volumes.device(volume.id)).path, 1)
    found, _ = await thin_run.catalog.read(
        lambda tx: tx.page_of_snapshots(SnapshotFilter(), Page())
    )
    kept = [item for item in found if item.id != snapshot.id]
    assert len(kept) == int(keep)
    for item in kept:
        back = await settled_volume(
            thin_run, await thin_run.service.volumes.create(empty(SIZE, item.id))
        )
        stamps.expect((await thin_run.service.volumes.device(back.id)).path, 2)


async def test_volume_opened_between_request_and_swap_is_not_reverted(thin_run: Running) -> None:
    volume, snapshot = await volume_with_snapshot(thin_run)
    thin_run.driver.gates["clone"] = gate = asyncio.Event()
    reverting = await thin_run.service.volumes.revert(volume.id, snapshot.id, True)
    path = (await thin_run.service.volumes.device(volume.id)).path
    with open(path, "rb"):
        gate.set()
        after = await settled_volume(thin_run, reverting)
    assert after.error is not None
    assert "in use" in after.error
    stamps.expect(path, 2)


async def test_erase_that_fails_is_a_problem_until_it_succeeds(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.service.operations._FIRST_RETRY_S", 0.05)
    run.driver.fail_next["create"] = StorageError(REASON)
    run.driver.fail_next["erase"] = StorageError("still burning")
    await settled_volume(run, await run.service.volumes.create(empty()))

    async def degraded() -> bool:
        health = await run.service.host.health()
        return health.status == "degraded" and "still burning" in health.problems[0]

    await until(degraded)
    await until(lambda: idle(run))
    assert (await run.service.host.health()).status == "ok"


async def test_whole_volume_is_never_erased_whatever_the_journal_says(run: Running) -> None:
    volume, _ = await volume_with_snapshot(run)
    intent = await run.catalog.write(
        "forged", lambda tx: add_erase(tx, volume.storage_class, [volume.disk], [])
    )
    run.service.volumes._operations.submit(intent)
    await until(lambda: idle(run))
    stamps.expect((await run.service.volumes.device(volume.id)).path, 2)


async def test_operations_of_a_passing_state_are_refused(run: Running) -> None:
    volume, snapshot = await volume_with_snapshot(run)
    run.driver.gates["grow"] = gate = asyncio.Event()
    changing = await run.service.volumes.change(volume.id, VolumeChange(size_bytes=2 * SIZE))
    for attempt in (
        run.service.volumes.delete(volume.id),
        run.service.volumes.revert(volume.id, snapshot.id, True),
        run.service.volumes.change(volume.id, VolumeChange(size_bytes=3 * SIZE)),
        run.service.snapshots.create(NewSnapshot(volume.id, None, None, (), False)),
    ):
        with pytest.raises(TransientState):
            await attempt
    renamed = await run.service.volumes.change(volume.id, VolumeChange(name="other"))
    assert (renamed.name, renamed.status) == ("other", Status.UPDATING)
    gate.set()
    assert (await settled_volume(run, changing)).size_bytes == 2 * SIZE


async def test_open_volume_is_neither_deleted_nor_reverted(run: Running) -> None:
    volume, snapshot = await volume_with_snapshot(run)
    with open((await run.service.volumes.device(volume.id)).path, "rb"):
        assert (await run.service.volumes.get(volume.id)).status is Status.IN_USE
        with pytest.raises(InUse):
            await run.service.volumes.delete(volume.id)
        with pytest.raises(InUse):
            await run.service.volumes.revert(volume.id, snapshot.id, True)
        (parent,) = {(await run.service.snapshots.get(snapshot.id)).parent}
        assert parent is not None
        assert parent.status is Status.IN_USE


async def test_stopped_daemon_leaves_what_waits_in_the_journal_and_the_next_finishes_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as first:
        volume, snapshot = await volume_with_snapshot(first)
        async with first.driver.turn():
            reverting = await first.service.volumes.revert(volume.id, snapshot.id, True)
            stopping = asyncio.create_task(
                first.service.volumes._operations.__aexit__(None, None, None)
            )
            await asyncio.sleep(0)
        await stopping
        waiting = await first.catalog.read(lambda tx: tx.intents())
        assert len(waiting) == 1
    async with running(tmp_path) as second:
        after = await settled_volume(second, reverting)
        assert after.status is Status.AVAILABLE
        stamps.expect((await second.service.volumes.device(volume.id)).path, 1)
        await until(lambda: idle(second))
        await expect_no_leftovers(second)


async def test_failed_revert_whose_swap_took_place_all_the_same_is_not_undone(
    thin_run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel swapped, and then said no: erasing the new disk would erase the volume."""
    monkeypatch.setattr("blockd.service.operations._FIRST_RETRY_S", 0.01)
    volume, snapshot = await volume_with_snapshot(thin_run)
    swap = thin_run.driver.swap

    async def swap_and_complain(front: object) -> None:
        monkeypatch.setattr(thin_run.driver, "swap", swap)
        await swap(front)  # type: ignore[arg-type]
        raise StorageError(REASON)

    monkeypatch.setattr(thin_run.driver, "swap", swap_and_complain)
    reverting = await thin_run.service.volumes.revert(volume.id, snapshot.id, False)
    after = await settled_volume(thin_run, reverting)
    assert after.error is None
    stamps.expect((await thin_run.service.volumes.device(volume.id)).path, 1)


async def test_pool_promised_too_often_refuses_and_makes_nothing(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path / "sbs", capacity_bytes=1024 * MIB)
    async with running(tmp_path, driver=driver) as run:
        volume, _ = await volume_with_snapshot(run)
        before = await run.driver.disks()
        with pytest.raises(NoRoom, match="would exceed 10 times"):
            await run.service.volumes.create(empty(10 * 1024 * MIB))
        change = VolumeChange(size_bytes=10 * 1024 * MIB + SIZE)
        with pytest.raises(NoRoom, match="would exceed 10 times"):
            await run.service.volumes.change(volume.id, change)
        await expect_no_leftovers(run)
        assert await run.driver.disks() == before


async def test_unknown_things_are_not_found(run: Running) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    for attempt in (
        run.service.volumes.get(unknown),
        run.service.volumes.delete(unknown),
        run.service.volumes.undelete(unknown),
        run.service.volumes.revert(unknown, unknown, True),
        run.service.volumes.device(unknown),
        run.service.volumes.create(empty(SIZE, unknown)),
        run.service.snapshots.create(NewSnapshot(unknown, None, None, (), False)),
        run.service.snapshots.undelete(unknown),
    ):
        with pytest.raises(NotFound):
            await attempt
