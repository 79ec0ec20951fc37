"""The long verbs of a thick class: jobs with progress that can be cancelled, reverts by merging."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockd.domain.errors import (
    InvalidArguments,
    PreconditionFailed,
    StorageError,
    TransientState,
)
from blockd.domain.job import JobKind, JobState
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.domain.volume import VolumeChange
from blockd.service.ports import FrontSpec
from tests.service.thick_rig import NEW, OLD, SIZE, Thick, thick
from tests.support import stamps

REASON = "the disk is on fire"
EXTENT = 4 * MIB


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Thick]:
    async with thick(tmp_path) as started:
        yield started
        await started.expect_agreement()


# jobs


async def test_create_is_a_job_with_progress_and_the_volume_is_zeros(rig: Thick) -> None:
    rig.driver.gates["complete"] = gate = asyncio.Event()
    volume = await rig.create(3 * EXTENT)
    assert (volume.status, volume.perf_iops) == (Status.CREATING, None)
    job = await rig.job_of(volume)
    assert (job.kind, job.volume_id, job.bucket, job.key) == (JobKind.CREATE, volume.id, None, None)
    assert not job.has_ended
    gate.set()
    done = await rig.ended(job)
    assert (done.state, done.bytes_done, done.bytes_total) == (
        JobState.SUCCEEDED,
        3 * EXTENT,
        3 * EXTENT,
    )
    await rig.expect(volume, 0)


@pytest.mark.parametrize("verb", ["create", "clone"])
async def test_cancelled_create_leaves_a_volume_in_error_and_no_disk(rig: Thick, verb: str) -> None:
    _, snapshot = await rig.stamped()
    rig.driver.gates["complete"] = asyncio.Event()
    volume = await rig.create(of=snapshot.id if verb == "clone" else None)
    job = await rig.job_of(volume)
    assert job.kind == verb
    await rig.until_disk(volume.disk)
    await rig.run.service.transfers.cancel(job.id)
    assert (await rig.ended(job)).state is JobState.CANCELLED
    row = await rig.run.service.volumes.get(volume.id)
    assert (row.status, row.error) == (Status.ERROR, "cancelled")
    del rig.driver.gates["complete"]
    await rig.expect_snapshot(snapshot, OLD)


async def test_cancelled_grow_leaves_the_old_size_and_its_old_bytes_never_show(rig: Thick) -> None:
    volume, _ = await rig.stamped()
    rig.driver.gates["complete"] = asyncio.Event()
    changing = await rig.grow(volume, 3 * EXTENT)
    assert (changing.status, changing.size_bytes) == (Status.UPDATING, SIZE)
    await rig.until_disk(volume.disk, 3 * EXTENT)
    job = await rig.job_of(volume)
    await rig.run.service.transfers.cancel(job.id)
    assert (await rig.ended(job)).state is JobState.CANCELLED
    row = await rig.run.service.volumes.get(volume.id)
    assert (row.status, row.size_bytes, row.error) == (Status.AVAILABLE, SIZE, "cancelled")
    await rig.expect(volume, NEW)
    del rig.driver.gates["complete"]

    # The disk has old bytes behind the volume's end now, and so has a snapshot of it.
    snapshot = await rig.snapshot(volume)
    whole_blocks = SIZE // 4096 * 4096
    for larger in (
        await rig.volume(3 * EXTENT, of=snapshot.id),
        await rig.settled(await rig.grow(volume, 3 * EXTENT)),
    ):
        path = await rig.path(larger)
        stamps.expect(path, NEW, 0, whole_blocks)
        stamps.expect(path, 0, whole_blocks + 4096)
        assert os.path.getsize(path) == 3 * EXTENT


async def test_thick_jobs_wait_for_no_transfer_and_reverts_for_no_create(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["complete"] = gate = asyncio.Event()
    waiting = [await rig.create() for _ in range(4)]
    jobs = rig.run.service.transfers._jobs
    async with jobs._transfer_slots, jobs._transfer_slots:
        after = await rig.settled(
            await rig.run.service.volumes.revert(volume.id, snapshot.id, False)
        )
        assert after.error is None
        await rig.expect(volume, OLD)
        gate.set()
        for created in waiting:
            assert (await rig.settled(created)).status is Status.AVAILABLE


async def test_snapshot_that_is_being_copied_is_in_use_and_protected(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["complete"] = gate = asyncio.Event()
    clone = await rig.create(of=snapshot.id)
    assert (await rig.run.service.snapshots.get(snapshot.id)).status is Status.IN_USE
    with pytest.raises(PreconditionFailed) as caught:
        await rig.run.service.snapshots.delete(snapshot.id)
    assert caught.value.precondition == "protected_resource"
    with pytest.raises(TransientState):
        await rig.run.service.volumes.revert(volume.id, snapshot.id, False)
    second = await rig.create(of=snapshot.id)  # readers share it
    gate.set()
    for copy in (clone, second):
        await rig.expect(await rig.settled(copy), OLD)
    assert (await rig.run.service.snapshots.get(snapshot.id)).status is Status.AVAILABLE
    await rig.run.service.snapshots.delete(snapshot.id)


async def test_performance_of_a_thick_volume_cannot_be_set(rig: Thick) -> None:
    volume = await rig.volume()
    with pytest.raises(InvalidArguments, match="perf_iops"):
        await rig.run.service.volumes.change(volume.id, VolumeChange(perf_iops=15000))


# reverts


async def test_revert_is_a_job_that_gives_the_old_bytes_and_keeps_both_snapshots(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    sibling = await rig.snapshot(volume, "sibling")
    reverted = await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
    assert reverted.status is Status.UPDATING
    job = await rig.job_of(volume)
    assert (job.kind, job.snapshot_id) == (JobKind.REVERT, snapshot.id)
    assert (await rig.settled(reverted)).error is None
    await rig.expect(volume, OLD)
    _, snapshots = await rig.rows()
    (kept,) = [row for row in snapshots if row.id not in (snapshot.id, sibling.id)]
    assert kept.name.startswith("v before revert ")
    for picture, generation in ((kept, NEW), (sibling, NEW), (snapshot, OLD)):
        await rig.expect_snapshot(picture, generation)
    # And undone by reverting to what was kept.
    await rig.settled(await rig.run.service.volumes.revert(volume.id, kept.id, False))
    await rig.expect(volume, NEW)
    await rig.expect_snapshot(snapshot, OLD)


async def test_revert_of_a_volume_that_has_grown_since_is_zeros_behind_the_snapshot(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    await rig.settled(await rig.grow(volume, 2 * EXTENT))
    path = await rig.path(volume)
    stamps.stamp(path, NEW)
    after = await rig.settled(await rig.run.service.volumes.revert(volume.id, snapshot.id, True))
    assert (after.size_bytes, os.path.getsize(path)) == (2 * EXTENT, 2 * EXTENT)
    stamps.expect(path, OLD, 0, SIZE // 4096 * 4096)
    stamps.expect(path, 0, SIZE // 4096 * 4096 + 4096)


@pytest.mark.parametrize("step", ["disconnect", "snapshot", "reserve_for_revert", "begin_merge"])
async def test_revert_refused_before_the_merge_leaves_the_volume_as_it_was(
    rig: Thick, step: str
) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.fail_next[step] = StorageError(REASON)
    after = await rig.settled(await rig.run.service.volumes.revert(volume.id, snapshot.id, True))
    assert (after.status, after.error) == (Status.AVAILABLE, REASON)
    await rig.expect(volume, NEW)
    await rig.idle()
    assert [row.id for row in (await rig.rows())[1]] == [snapshot.id]
    await rig.expect_snapshot(snapshot, OLD)


@pytest.mark.parametrize("step", ["merged", "end_merge", "snapshot again", "connect"])
async def test_revert_that_fails_after_the_merge_began_only_goes_forward(
    rig: Thick, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.service.jobs._FIRST_RETRY_S", 0.01)
    volume, snapshot = await rig.stamped()
    error = StorageError(REASON)
    if step == "snapshot again":
        rig.driver.gates["end_merge"] = gate = asyncio.Event()
    else:
        rig.driver.fail_next[step] = error
    reverting = await rig.run.service.volumes.revert(volume.id, snapshot.id, False)
    if step == "snapshot again":
        rig.driver.fail_next["snapshot"] = error
        gate.set()
    after = await rig.settled(reverting)
    assert (after.status, after.error) == (Status.AVAILABLE, None)
    assert not rig.driver.fail_next
    await rig.expect(volume, OLD)
    await rig.expect_snapshot(snapshot, OLD)
    assert (await rig.job_of(volume)).attempt == 2


async def test_revert_is_cancelled_before_the_merge_and_not_after(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["reserve_for_revert"] = asyncio.Event()
    await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
    job = await rig.job_of(volume)
    await rig.run.service.transfers.cancel(job.id)
    assert (await rig.ended(job)).state is JobState.CANCELLED
    await rig.expect(volume, NEW)
    del rig.driver.gates["reserve_for_revert"]

    rig.driver.gates["merged"] = gate = asyncio.Event()
    reverting = await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
    job = await rig.job_of(volume)
    async with asyncio.timeout(10):
        while (await rig.run.service.transfers.job(job.id)).phase != "merging":
            await asyncio.sleep(0.002)
    with pytest.raises(PreconditionFailed, match="is being merged"):
        await rig.run.service.transfers.cancel(job.id)
    with pytest.raises(TransientState):
        await rig.create(of=snapshot.id)
    gate.set()
    assert (await rig.settled(reverting)).error is None
    await rig.expect(volume, OLD)


async def test_volume_that_is_opened_before_its_front_goes_down_is_not_reverted(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["disconnect"] = gate = asyncio.Event()
    reverting = await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
    path = await rig.path(volume)
    with open(path, "rb"):
        gate.set()
        after = await rig.settled(reverting)
    assert "in use" in str(after.error)
    await rig.expect(volume, NEW)


async def test_delete_that_loses_to_a_revert_does_not_bring_the_front_up_under_the_merge(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["disconnect"] = both = asyncio.Event()
    rig.driver.gates["merged"] = merging = asyncio.Event()
    deleting = asyncio.create_task(rig.run.service.volumes.delete(volume.id))
    await asyncio.sleep(0)
    reverting = await rig.run.service.volumes.revert(volume.id, snapshot.id, False)
    both.set()
    with pytest.raises(TransientState):
        await deleting
    assert await rig.driver.disk_behind(volume.id) is None
    merging.set()
    assert (await rig.settled(reverting)).status is Status.AVAILABLE
    await rig.expect(volume, OLD)


async def test_what_is_written_to_a_new_part_before_the_grow_is_noted_is_never_zeroed(
    rig: Thick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.service.jobs._FIRST_RETRY_S", 0.01)
    volume = await rig.volume()
    path, connect = await rig.path(volume), rig.driver.connect

    async def show_and_fail(front: FrontSpec) -> None:
        monkeypatch.setattr(rig.driver, "connect", connect)
        await connect(front)
        stamps.stamp(path, NEW)  # a guest that was waiting for it
        with pytest.raises(PreconditionFailed, match="at its end"):
            await rig.run.service.transfers.cancel((await rig.job_of(volume)).id)
        raise StorageError(REASON)

    monkeypatch.setattr(rig.driver, "connect", show_and_fail)
    after = await rig.settled(await rig.grow(volume, 3 * EXTENT))
    assert (after.size_bytes, after.error) == (3 * EXTENT, None)
    await rig.expect(after, NEW)


async def test_what_is_written_before_the_revert_is_noted_is_not_in_the_snapshot(
    rig: Thick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.service.jobs._FIRST_RETRY_S", 0.01)
    volume, snapshot = await rig.stamped()
    path, connect = await rig.path(volume), rig.driver.connect

    async def show_and_fail(front: FrontSpec) -> None:
        monkeypatch.setattr(rig.driver, "connect", connect)
        await connect(front)
        stamps.expect(path, OLD)
        stamps.stamp(path, NEW)
        raise StorageError(REASON)

    monkeypatch.setattr(rig.driver, "connect", show_and_fail)
    after = await rig.settled(await rig.run.service.volumes.revert(volume.id, snapshot.id, False))
    assert after.error is None
    await rig.expect(after, NEW)
    await rig.expect_snapshot(snapshot, OLD)
