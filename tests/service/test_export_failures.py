"""What becomes of an export when the object store, qemu-img or the daemon fails in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from blockd.domain.errors import WrongState
from blockd.domain.job import Compression, Job, JobState
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.transfer import images, planned_export, qemu_img, s3_requests
from tests.service.transfer_rig import KEY, TransferRig, check_image, qemu_img_pid, transfer_rig
from tests.support.faulty_store import Fault, FaultyStore, is_any, is_part
from tests.support.object_store import BUCKET

PART = 5 * MIB


async def expect_nothing_left(rig: TransferRig, snapshot: Snapshot) -> None:
    """After a failed export: no upload, no object but the former one, the snapshot whole."""
    assert rig.uploads() == []
    row = await rig.running.service.snapshots.get(snapshot.id)
    assert (row.status, row.error) == (Status.AVAILABLE, None)
    assert list(await rig.running.driver.disks()) != []


FAULTS = {
    "refused": Fault(is_part(2), "refuse", times=2),
    "reset in the middle": Fault(is_part(2), "reset", times=2),
    "500": Fault(is_part(2), "status", times=2, status=500),
    "503 slow down": Fault(is_part(2), "status", times=3, status=503, code="SlowDown"),
    "429": Fault(is_part(1), "status", times=2, status=429, code="TooManyRequests"),
    "hung": Fault(is_part(3), "hang", times=1),
    "answer to the completion lost": Fault(is_any("POST upload"), "cut", times=1),
    "completion refused once": Fault(is_any("POST upload"), "refuse", times=1),
    "damaged on the way": Fault(is_part(2), "damage", times=2),
    "completion answered with a foreign ETag": Fault(is_any("POST upload"), "rename", times=1),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_export_survives_what_passes(
    tmp_path: Path, store: FaultyStore, fault: str, quick_silence: None
) -> None:
    # The module's faults are templates: each test counts down its own.
    template = FAULTS[fault]
    store.faults.append(Fault(**vars(template)))
    async with transfer_rig(tmp_path, store, patience="20s") as rig:
        snapshot = await rig.snapshot()
        job = await rig.ended(await rig.export(snapshot))
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)
        assert store.faults[0].times < template.times
        check_image(rig.server.object(KEY), rig.disk(snapshot))
        assert rig.uploads() == []


async def test_export_whose_completion_names_no_parts_is_looked_at(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_any("POST upload"), "rename", times=1))
    store.faults.append(Fault(is_any("HEAD"), "status", times=2, status=502))
    async with transfer_rig(tmp_path, store, patience="20s") as rig:
        snapshot = await rig.snapshot(data_mib=6)
        job = await rig.ended(await rig.export(snapshot))
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)
        assert store.count("HEAD") == 3
        again = await rig.ended(await rig.export(snapshot, "again.qcow2"))
        assert again.state is JobState.SUCCEEDED
        assert store.count("HEAD") == 3, "the answer named the parts"


async def test_export_whose_upload_was_lost_is_not_taken_for_the_object_that_is_there(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store, patience="5s") as rig:
        snapshot = await rig.snapshot(data_mib=6)
        assert (await rig.ended(await rig.export(snapshot, "yesterday.qcow2"))).error is None
        yesterday = rig.server.object("yesterday.qcow2").read_bytes()
        former = rig.server.object(KEY)
        former.parent.mkdir(parents=True, exist_ok=True)
        former.write_bytes(yesterday)  # of the same size, and a server that forgot whose it is
        store.faults.append(Fault(is_any("POST upload"), "call", action=rig.server.abort_uploads))
        job = await rig.ended(await rig.export(snapshot))
        assert job.state is JobState.FAILED
        assert "is not what was sent" in str(job.error)
        assert former.read_bytes() == yesterday


PERMANENT = {
    "refused": Fault(is_any("PUT"), "refuse", times=10**6),
    "500": Fault(is_any("PUT"), "status", times=10**6, status=500),
    "hung": Fault(is_any("PUT"), "hang", times=10**6),
    "forbidden": Fault(is_any("PUT"), "status", times=1, status=403, code="AccessDenied"),
    "completion": Fault(is_any("POST upload"), "status", times=10**6, status=503, code="SlowDown"),
    "creation lost": Fault(is_any("POST uploads"), "cut", times=1),
}
SAID = {
    "refused": "the server closed the connection (tried for 1 s)",
    "500": "the server said 500 InternalError (tried for 1 s)",
    "hung": "the server does not answer (tried for 1 s)",
    "forbidden": "may not use bucket backups",
    "completion": "the server said 503 SlowDown",
    "creation lost": "POST s3://backups/daily/monday.qcow2",
}


@pytest.mark.parametrize("fault", PERMANENT)
async def test_export_that_fails_leaves_the_former_object_and_nothing_else(
    tmp_path: Path, store: FaultyStore, fault: str, quick_silence: None
) -> None:
    async with transfer_rig(tmp_path, store, patience="1s") as rig:
        former = rig.server.object(KEY)
        former.parent.mkdir(parents=True, exist_ok=True)
        former.write_bytes(b"the former object")
        snapshot = await rig.snapshot(data_mib=12)
        store.faults.append(Fault(**vars(PERMANENT[fault])))
        job = await rig.ended(await rig.export(snapshot))
        assert job.state is JobState.FAILED
        assert SAID[fault] in str(job.error)
        assert former.read_bytes() == b"the former object"
        await expect_nothing_left(rig, snapshot)


async def test_export_into_a_bucket_that_is_deleted_meanwhile_fails_and_says_so(
    tmp_path: Path, store: FaultyStore
) -> None:
    # The words of S3: rclone makes the folder of a bucket again when somebody writes to it.
    gone = Fault(lambda kind: True, "status", times=10**6, status=404, code="NoSuchBucket")
    store.faults.append(Fault(is_part(3), "call", action=lambda: store.faults.append(gone)))
    async with transfer_rig(tmp_path, store, patience="1s") as rig:
        snapshot = await rig.snapshot()
        job = await rig.ended(await rig.export(snapshot))
        assert job.state is JobState.FAILED
        assert "there is no bucket backups" in str(job.error)
        row = await rig.running.service.snapshots.get(snapshot.id)
        assert (row.status, row.error) == (Status.AVAILABLE, None)
        assert not rig.server.object(KEY).exists()


async def test_abort_that_fails_is_tried_again_until_nothing_is_left(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_any("PUT"), "status", times=1, status=403, code="AccessDenied"))
    store.faults.append(Fault(is_any("DELETE"), "status", times=4, status=500))
    async with transfer_rig(tmp_path, store, patience="0.3s") as rig:
        snapshot = await rig.snapshot(data_mib=2)
        begun = await rig.export(snapshot)
        job = await rig.ended(begun)
        assert job.state is JobState.FAILED
        assert store.count("DELETE upload") >= 5
        await expect_nothing_left(rig, snapshot)
        assert (await rig.running.service.host.health()).problems == []


@pytest.mark.parametrize(
    ("volume_class", "compression"), [("bssd", Compression.NONE), ("sbs", Compression.ZSTD)]
)
async def test_export_whose_qemu_img_is_killed_fails_and_leaves_nothing(
    tmp_path: Path, store: FaultyStore, volume_class: str, compression: Compression
) -> None:
    store.faults.append(Fault(is_any("PUT"), "hang", times=10**6))
    async with transfer_rig(tmp_path, store, default_class=volume_class) as rig:
        snapshot = await rig.snapshot(data_mib=60)
        begun = await rig.export(snapshot, compression=compression)
        os.kill(await qemu_img_pid(), signal.SIGKILL)
        store.released.set()
        job = await rig.ended(begun)
        assert (job.state, job.error) == (JobState.FAILED, "qemu-img: it was ended by signal 9")
        assert not rig.server.object(KEY).exists()
        await expect_nothing_left(rig, snapshot)


async def test_export_whose_qemu_img_does_nothing_any_more_fails_and_leaves_nothing(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_img, "_IDLE_S", 0.5)
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot(data_mib=60)
        begun = await rig.export(snapshot, compression=Compression.ZSTD)
        os.kill(pid := await qemu_img_pid(), signal.SIGSTOP)
        job = await rig.ended(begun)
        assert job.state is JobState.FAILED
        assert "qemu-img has done nothing for" in str(job.error)
        with suppress(FileNotFoundError):  # or nobody has waited for it yet
            assert "(zombie)" in Path(f"/proc/{pid}/status").read_text()
        await expect_nothing_left(rig, snapshot)


async def test_export_whose_qemu_img_waits_for_us_for_long_goes_on(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_img, "_IDLE_S", 0.1)
    async with transfer_rig(tmp_path, store, bandwidth="10MiB") as rig:
        snapshot = await rig.snapshot(data_mib=60)
        job = await rig.ended(await rig.export(snapshot, compression=Compression.ZSTD))
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)


async def test_export_that_is_cancelled_leaves_nothing(tmp_path: Path, store: FaultyStore) -> None:
    store.faults.append(Fault(is_part(3), "hang"))
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot()
        begun = await rig.export(snapshot)
        await store.hanging.wait()
        await rig.running.service.transfers.cancel(begun.id)
        job = await rig.ended(begun)
        assert (job.state, job.error) == (JobState.CANCELLED, "cancelled")
        assert not rig.server.object(KEY).exists()
        await expect_nothing_left(rig, snapshot)
        with pytest.raises(WrongState):
            await rig.running.service.transfers.cancel(begun.id)


async def test_job_that_waits_is_cancelled_without_a_turn(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_any("PUT"), "hang", times=10**6))
    async with transfer_rig(tmp_path, store, concurrency=1) as rig:
        first, second = await rig.snapshot(data_mib=2), await rig.snapshot(data_mib=2)
        running = await rig.export(first)
        await store.hanging.wait()
        waiting = await rig.export(second, "other.qcow2")
        assert waiting.state is JobState.QUEUED
        await rig.running.service.transfers.cancel(waiting.id)
        assert (await rig.ended(waiting)).state is JobState.CANCELLED
        await rig.running.service.snapshots.delete(second.id)
        store.faults.clear()
        store.released.set()
        assert (await rig.ended(running)).state is JobState.SUCCEEDED


async def test_export_goes_on_after_a_restart_and_sends_no_part_twice_that_was_there(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_part(9), "hang"))
    async with transfer_rig(tmp_path, store, parallel=2) as rig:
        snapshot = await rig.snapshot(data_mib=60)
        begun = await rig.export(snapshot)
        await store.hanging.wait()
    sent = len(set(store.parts()))
    assert sent >= 8
    store.seen.clear()
    async with transfer_rig(tmp_path, store, parallel=2) as rig:
        job = await rig.ended(begun)
        assert (job.state, job.error, job.attempt) == (JobState.SUCCEEDED, None, 2)
        again = [number for number in store.parts() if number <= sent]
        assert len(again) <= 2, "at most one part times the parallelism is sent again"
        check_image(rig.server.object(KEY), rig.disk(snapshot))
        good = await rig.ended(await rig.running.service.transfers.verify(BUCKET, KEY))
        assert (good.state, good.content_digest) == (JobState.SUCCEEDED, job.content_digest)
        assert rig.uploads() == []


async def test_export_sends_after_a_restart_just_the_part_that_was_left_out(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_part(3), "hang"))
    async with transfer_rig(tmp_path, store, parallel=2) as rig:
        begun = await rig.export(snapshot := await rig.snapshot(data_mib=60))
        async with asyncio.timeout(30):
            # Three parts exist at once, and one is the third: all before the sixth are answered.
            while 8 not in store.parts():
                await asyncio.sleep(0.01)
    store.seen.clear()
    async with transfer_rig(tmp_path, store, parallel=2) as rig:
        job = await rig.ended(begun)
        assert (job.state, job.error, job.attempt) == (JobState.SUCCEEDED, None, 2)
        assert [number for number in store.parts() if number <= 5] == [3]
        check_image(rig.server.object(KEY), rig.disk(snapshot))


async def test_export_with_parts_that_end_within_clusters_begins_again_after_an_update(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.faults.append(Fault(is_part(3), "hang"))
    with monkeypatch.context() as patch:  # as it was: parts of the size that the config says
        patch.setattr(images, "part_bytes_for", lambda _object, part, _most: part)
        patch.setattr(planned_export, "CLUSTER_BYTES", 512)
        async with transfer_rig(tmp_path, store, part_size=6_000_128) as rig:
            begun = await rig.export(snapshot := await rig.snapshot())
            await store.hanging.wait()
    async with transfer_rig(tmp_path, store, part_size=6_000_128) as rig:
        job = await rig.ended(begun)
        assert (job.state, job.error, job.attempt) == (JobState.SUCCEEDED, None, 2)
        check_image(rig.server.object(KEY), rig.disk(snapshot))
        assert rig.uploads() == []


async def test_export_whose_disk_fails_meanwhile_says_so_and_leaves_nothing(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_part(3), "hang"))
    async with transfer_rig(tmp_path, store, parallel=1) as rig:
        begun = await rig.export(snapshot := await rig.snapshot(data_mib=60))
        await store.hanging.wait()
        os.truncate(rig.disk(snapshot), PART)
        store.released.set()
        job = await rig.ended(begun)
        assert (job.state, job.error) == (JobState.FAILED, "the disk is shorter than its volume")
        assert not rig.server.object(KEY).exists()
        assert rig.uploads() == []


async def test_completion_may_take_longer_than_a_silence(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_requests, "_SILENCE_S", 0.5)
    store.faults.append(Fault(is_any("POST upload"), "hang", times=1))
    async with transfer_rig(tmp_path, store) as rig:
        begun = await rig.export(await rig.snapshot(data_mib=6))
        await store.hanging.wait()
        await asyncio.sleep(1.5)
        assert store.count("POST upload") == 1, "it was given up"
        store.released.set()
        assert (await rig.ended(begun)).error is None


async def test_export_whose_parts_were_all_sent_is_completed_after_a_restart(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(lambda kind: kind == "POST upload", "hang"))
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot()
        begun = await rig.export(snapshot)
        await store.hanging.wait()
    store.seen.clear()
    async with transfer_rig(tmp_path, store) as rig:
        job = await rig.ended(begun)
        assert (job.state, job.error, job.attempt) == (JobState.SUCCEEDED, None, 2)
        assert len(store.parts()) <= 1
        check_image(rig.server.object(KEY), rig.disk(snapshot))


async def test_compressed_export_begins_again_after_a_restart_and_ends_the_old_upload(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_part(5), "hang"))
    async with transfer_rig(tmp_path, store, parallel=2) as rig:
        snapshot = await rig.snapshot(data_mib=60)
        begun = await rig.export(snapshot, compression=Compression.ZSTD)
        await store.hanging.wait()
    async with transfer_rig(tmp_path, store, parallel=2) as rig:
        job = await rig.ended(begun)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
        check_image(rig.server.object(KEY), rig.disk(snapshot))
        assert rig.uploads() == []


async def test_export_that_was_cancelled_before_a_crash_does_not_go_on(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(is_part(3), "hang"))
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot()
        begun = await rig.export(snapshot)
        await store.hanging.wait()

        def note(tx: object) -> Job:
            return rig.running.service.transfers._jobs._steps.note_cancel(begun.id)(tx)  # type: ignore[arg-type]

        await rig.running.catalog.write("cancelled", note)  # and then the power goes
    async with transfer_rig(tmp_path, store) as rig:
        job = await rig.ended(begun)
        assert job.state is JobState.CANCELLED
        await expect_nothing_left(rig, snapshot)
