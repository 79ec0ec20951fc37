"""What becomes of an import when the object store, qemu-img or the daemon fails in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from blockd.domain.job import Compression, Job, JobState
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import Status
from blockd.transfer import qemu_img
from tests.service.transfer_rig import KEY, TransferRig, qemu_img_pid, transfer_rig
from tests.support.faulty_store import Fault, FaultyStore, is_any

#: Plain images are copied by ourselves, packed ones by qemu-img.
either_way = pytest.mark.parametrize("compression", [Compression.NONE, Compression.ZLIB])


async def _exported(rig: TransferRig, compression: Compression) -> Snapshot:
    snapshot = await rig.snapshot(data_mib=40)
    exporting = await rig.export(snapshot, compression=compression)
    assert (await rig.ended(exporting)).state is JobState.SUCCEEDED
    return snapshot


async def _expect_failed_import(rig: TransferRig, imported: Snapshot, job: Job) -> None:
    row = await rig.running.service.snapshots.get(imported.id)
    assert row.status is Status.ERROR
    assert str(job.error) in str(row.error)
    async with asyncio.timeout(20):
        while imported.disk in await rig.running.driver.disks():
            await asyncio.sleep(0.01)


READ_FAULTS = {
    "refused": Fault(is_any("GET"), "refuse", times=2),
    "cut": Fault(is_any("GET"), "cut", times=2),
    "503": Fault(is_any("GET"), "status", times=2, status=503, code="SlowDown"),
    "hung": Fault(is_any("GET"), "hang", times=1),
}


@either_way
@pytest.mark.parametrize("fault", READ_FAULTS)
async def test_import_survives_what_passes(
    tmp_path: Path, store: FaultyStore, compression: Compression, fault: str, quick_silence: None
) -> None:
    async with transfer_rig(tmp_path, store, patience="20s") as rig:
        snapshot = await _exported(rig, compression)
        imported, begun = await rig.restore()
        store.faults.append(Fault(**vars(READ_FAULTS[fault])))
        job = await rig.ended(begun)
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)
        same = ["cmp", "-n", str(snapshot.size_bytes), rig.disk(imported), rig.disk(snapshot)]
        subprocess.run(same, check=True, timeout=60)


@either_way
async def test_import_of_an_object_that_is_replaced_meanwhile_fails_and_leaves_no_disk(
    tmp_path: Path, store: FaultyStore, compression: Compression
) -> None:
    async with transfer_rig(tmp_path, store, patience="1s") as rig:
        await _exported(rig, compression)
        image = rig.server.object(KEY)

        def replace() -> None:
            content = bytearray(image.read_bytes())
            content[-100000] ^= 255
            image.write_bytes(content)
            store.faults.clear()

        # The first reads are those of the request itself.
        imported, begun = await rig.restore()
        store.faults.append(Fault(is_any("GET"), "call", action=replace))
        job = await rig.ended(begun)
        assert job.state is JobState.FAILED
        assert "was replaced while it was being read" in str(job.error)
        await _expect_failed_import(rig, imported, job)


@either_way
async def test_import_whose_store_goes_away_fails_with_the_reason(
    tmp_path: Path, store: FaultyStore, compression: Compression
) -> None:
    async with transfer_rig(tmp_path, store, patience="1s") as rig:
        await _exported(rig, compression)
        imported, begun = await rig.restore()
        store.faults.append(Fault(is_any("GET"), "refuse", times=10**6))
        job = await rig.ended(begun)
        assert "the server closed the connection" in str(job.error)
        await _expect_failed_import(rig, imported, job)


@either_way
async def test_import_that_is_cancelled_leaves_no_disk(
    tmp_path: Path, store: FaultyStore, compression: Compression
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        await _exported(rig, compression)
        store.faults.append(Fault(lambda kind: kind == "GET" and store.count("GET") > 3, "hang"))
        imported, begun = await rig.restore()
        await store.hanging.wait()
        await rig.running.service.transfers.cancel(begun.id)
        job = await rig.ended(begun)
        assert job.state is JobState.CANCELLED
        await _expect_failed_import(rig, imported, job)


async def test_import_whose_qemu_img_is_killed_leaves_no_disk(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        await _exported(rig, Compression.ZLIB)
        store.faults.append(Fault(lambda kind: kind == "GET" and store.count("GET") > 3, "hang"))
        imported, begun = await rig.restore()
        await store.hanging.wait()
        os.kill(await qemu_img_pid(), signal.SIGKILL)
        job = await rig.ended(begun)
        assert job.error == "qemu-img: it was ended by signal 9"
        await _expect_failed_import(rig, imported, job)


async def test_import_whose_qemu_img_does_nothing_any_more_leaves_no_disk(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_img, "_IDLE_S", 0.5)
    async with transfer_rig(tmp_path, store) as rig:
        await _exported(rig, Compression.ZLIB)
        store.faults.append(Fault(lambda kind: kind == "GET" and store.count("GET") > 3, "hang"))
        imported, begun = await rig.restore()
        await store.hanging.wait()
        os.kill(await qemu_img_pid(), signal.SIGSTOP)
        store.released.set()
        job = await rig.ended(begun)
        assert "qemu-img has done nothing for" in str(job.error)
        await _expect_failed_import(rig, imported, job)


async def test_import_whose_qemu_img_waits_for_us_for_long_goes_on(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with transfer_rig(tmp_path, store, bandwidth="10MiB") as rig:
        await _exported(rig, Compression.ZLIB)
        monkeypatch.setattr(qemu_img, "_IDLE_S", 0.1)
        _, begun = await rig.restore()
        job = await rig.ended(begun)
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)


@either_way
async def test_import_begins_again_after_a_restart(
    tmp_path: Path, store: FaultyStore, compression: Compression
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await _exported(rig, compression)
        store.faults.append(Fault(lambda kind: kind == "GET" and store.count("GET") > 3, "hang"))
        imported, begun = await rig.restore()
        await store.hanging.wait()
    async with transfer_rig(tmp_path, store) as rig:
        job = await rig.ended(begun)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
        same = ["cmp", "-n", str(snapshot.size_bytes), rig.disk(imported), rig.disk(snapshot)]
        subprocess.run(same, check=True, timeout=60)
