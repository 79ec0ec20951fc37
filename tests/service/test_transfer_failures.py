"""What becomes of a transfer when the object store, qemu-img or the daemon fails in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.domain.errors import WrongState
from blockd.domain.job import Compression, Job, JobState
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.transfer import s3_requests
from tests.service.transfer_rig import KEY, TransferRig, check_image, transfer_rig
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.object_store import BUCKET

PART = 5 * MIB


def is_part(number: int) -> Callable[[str], bool]:
    return lambda kind: kind == f"PUT part {number}"


def is_any(word: str) -> Callable[[str], bool]:
    return lambda kind: kind == word or kind.startswith(f"{word} ")


async def expect_nothing_left(rig: TransferRig, snapshot: Snapshot) -> None:
    """After a failed export: no upload, no object but the former one, the snapshot whole."""
    assert rig.uploads() == []
    row = await rig.running.service.snapshots.get(snapshot.id)
    assert (row.status, row.error) == (Status.AVAILABLE, None)
    assert list(await rig.running.driver.disks()) != []


@pytest.fixture
def quick_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs is noticed within a moment."""
    for name in ("_SILENCE_S", "_ANSWER_S"):
        monkeypatch.setattr(s3_requests, name, 2.0)


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


async def _qemu_img() -> int:
    """The process id of our own qemu-img, once it runs: a child of the jail that is our child."""
    async with asyncio.timeout(20):
        while True:
            for jail in _children(os.getpid()):
                for child in _children(jail):
                    if Path(f"/proc/{child}/comm").read_text() == "qemu-img\n":
                        return child
            await asyncio.sleep(0.005)


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listed in lists for child in listed.read_text().split()]


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
        os.kill(await _qemu_img(), signal.SIGKILL)
        store.released.set()
        job = await rig.ended(begun)
        assert (job.state, job.error) == (JobState.FAILED, "qemu-img: it was ended by signal 9")
        assert not rig.server.object(KEY).exists()
        await expect_nothing_left(rig, snapshot)


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


# imports


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
        os.kill(await _qemu_img(), signal.SIGKILL)
        job = await rig.ended(begun)
        assert job.error == "qemu-img: it was ended by signal 9"
        await _expect_failed_import(rig, imported, job)


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
