"""Snapshots of a thick class that guests read: stores over their volume's disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockd.domain.errors import PreconditionFailed, TransientState
from blockd.domain.guest import Attachment, AttachmentStatus, GuestKey
from blockd.domain.intent import new_id
from blockd.domain.job import Phase
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import Status
from blockd.domain.units import now_timestamp
from blockd.service.rows import readable_snapshot
from blockd.service.shown_snapshots import front_of_snapshot
from tests.service.thick_rig import NEW, OLD, Thick, thick
from tests.support import stamps
from tests.support.guests import until


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Thick]:
    async with thick(tmp_path) as started:
        yield started


async def attach(rig: Thick, snapshot: Snapshot) -> Attachment:
    """As the catalog has it when a guest has it; there is no libvirt here."""
    key = GuestKey("qemu:///system", new_id())
    row = Attachment(
        new_id(), snapshot.id, key, "web", "vda", AttachmentStatus.ATTACHED, now_timestamp()
    )
    await rig.run.catalog.write("row", lambda tx: tx.attachments.put(row))
    await rig.driver.connect(front_of_snapshot(snapshot))
    return row


def device(rig: Thick, snapshot: Snapshot) -> str:
    return rig.driver.device(front_of_snapshot(snapshot)).path


async def test_revert_to_an_attached_snapshot_is_refused_as_it_takes_its_bytes_for_a_while(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    row = await attach(rig, snapshot)
    with pytest.raises(PreconditionFailed, match=r"is attached to web, .* detach it first"):
        await rig.run.service.volumes.revert(volume.id, snapshot.id, keep_previous=False)
    await rig.expect(volume, NEW)
    stamps.expect(device(rig, snapshot), OLD)

    async with rig.driver.turn():
        await rig.driver.hide(snapshot.id)
    await rig.run.catalog.write("gone", lambda tx: tx.attachments.remove(row.id))
    await rig.run.service.volumes.revert(volume.id, snapshot.id, keep_previous=False)
    await rig.settled(volume)
    await rig.expect(volume, OLD)


async def test_revert_to_another_snapshot_leaves_what_a_guest_reads(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    other = await rig.snapshot(volume, "other")
    await attach(rig, other)
    await rig.run.service.volumes.revert(volume.id, snapshot.id, keep_previous=False)
    await rig.settled(volume)
    await rig.expect(volume, OLD)
    stamps.expect(device(rig, other), NEW)


async def test_snapshot_that_its_volume_is_reverted_to_is_not_attached(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    rig.driver.gates["merged"] = gate = asyncio.Event()
    await rig.run.service.volumes.revert(volume.id, snapshot.id, keep_previous=False)
    await rig.until_phase(volume, Phase.MERGING)

    with pytest.raises(TransientState, match="in_use"):
        await rig.run.catalog.read(lambda tx: readable_snapshot(tx, snapshot.id))
    gate.set()
    await rig.settled(volume)


async def test_origin_of_an_attached_snapshot_outlives_its_volume(rig: Thick) -> None:
    volume, snapshot = await rig.stamped()
    await attach(rig, snapshot)
    await rig.run.service.volumes.delete(volume.id)
    await rig.idle()
    stamps.expect(device(rig, snapshot), OLD)


async def test_attached_snapshot_that_is_lost_is_in_error_and_erased_when_nobody_has_it_open(
    rig: Thick,
) -> None:
    volume, snapshot = await rig.stamped()
    row = await attach(rig, snapshot)
    with open(device(rig, snapshot), "rb"):
        rig.driver.lose(snapshot.disk, "its store is full")
        await until(lambda: _is_lost(rig, snapshot))
        await until(lambda: _is_told(rig, f"snapshot {snapshot.id} is in use"))
        assert snapshot.disk in await rig.driver.disks()
        with pytest.raises(PreconditionFailed, match="attached to web"):
            await rig.run.service.snapshots.delete(snapshot.id)
    await rig.run.catalog.write("gone", lambda tx: tx.attachments.remove(row.id))
    await rig.idle()
    assert snapshot.disk not in await rig.driver.disks()
    assert await rig.driver.disk_behind(snapshot.id) is None
    await rig.run.service.snapshots.delete(snapshot.id)
    await rig.expect(volume, NEW)


async def _is_lost(rig: Thick, snapshot: Snapshot) -> bool:
    return (await rig.run.service.snapshots.get(snapshot.id)).status is Status.ERROR


async def _is_told(rig: Thick, words: str) -> bool:
    return any(words in line for line in (await rig.run.service.host.health()).problems)
