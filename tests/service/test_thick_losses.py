"""Snapshots that are lost while a revert of their volume is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.intent import disk_name
from blockd.domain.job import JobState, Phase
from blockd.domain.states import Status
from tests.service.thick_rig import OLD, Thick, thick

REASON = "its store is full"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Thick]:
    async with thick(tmp_path) as started:
        yield started
        await started.expect_agreement()


async def until_lost(rig: Thick, snapshot_id: str) -> None:
    async with asyncio.timeout(10):
        while (row := await rig.run.service.snapshots.get(snapshot_id)).status is not Status.ERROR:
            await asyncio.sleep(0.002)
    assert row.error == REASON


async def test_kept_snapshot_that_is_lost_while_it_is_merged_is_in_error_and_the_revert_ends(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["merged"] = gate = asyncio.Event()
    await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
    job = await rig.until_phase(volume, Phase.MERGING)
    kept = str(job.args["keep_id"])
    rig.driver.lose(disk_name(kept), REASON)
    await until_lost(rig, kept)
    gate.set()
    assert (await rig.settled(volume)).error is None
    assert (await rig.ended(job)).state is JobState.SUCCEEDED
    await until_lost(rig, kept)  # and stays so
    await rig.idle()
    assert disk_name(kept) not in await rig.driver.disks()
    await rig.expect(volume, OLD)
    await rig.expect_snapshot(snapshot, OLD)


async def test_kept_snapshot_that_is_lost_and_deleted_while_it_is_merged_stays_in_the_trash(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["merged"] = gate = asyncio.Event()
    await rig.run.service.volumes.revert(volume.id, snapshot.id, True)
    kept = str((await rig.until_phase(volume, Phase.MERGING)).args["keep_id"])
    rig.driver.lose(disk_name(kept), REASON)
    await until_lost(rig, kept)
    await rig.run.service.snapshots.delete(kept)
    gate.set()
    assert (await rig.settled(volume)).error is None
    row = await rig.run.service.snapshots.get(kept, include_deleted=True)
    assert (row.status, row.error) == (Status.DELETED, REASON)


async def test_snapshot_that_is_lost_after_it_was_taken_again_is_in_error_and_the_revert_ends(
    rig: Thick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.service.jobs._FIRST_RETRY_S", 0.5)
    volume, snapshot = await rig.stamped()
    rig.driver.fail_next["connect"] = StorageError("no front now")
    await rig.run.service.volumes.revert(volume.id, snapshot.id, False)
    job = await rig.until_phase(volume, Phase.SHOWING)
    rig.driver.lose(snapshot.disk, REASON)
    await until_lost(rig, snapshot.id)
    assert (await rig.job_of(volume)).phase is Phase.SHOWING
    assert (await rig.settled(volume)).error is None
    done = await rig.ended(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    await rig.expect(volume, OLD)
    await rig.idle()
    assert snapshot.disk not in await rig.driver.disks()


async def test_snapshot_that_is_lost_while_it_is_merged_is_taken_again(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["merged"] = gate = asyncio.Event()
    await rig.run.service.volumes.revert(volume.id, snapshot.id, False)
    await rig.until_phase(volume, Phase.MERGING)
    rig.driver._losses.put_nowait((snapshot.disk, REASON))  # its disk is gone
    await asyncio.sleep(0.1)
    gate.set()
    assert (await rig.settled(volume)).error is None
    await rig.expect_snapshot(snapshot, OLD)
