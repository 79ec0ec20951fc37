"""Each kind of finding, made on purpose: found, explained, and fixed; a healthy host has none.

What only devices can have wrong is in tests/kernel/test_doctor.py.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from blockd.domain.errors import NotFound, StorageError, WrongState
from blockd.domain.finding import Finding, FindingKind
from blockd.domain.intent import disk_name, new_id
from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.domain.states import AVAILABLE, ERROR, TRANSIENT
from blockd.domain.volume import NewVolume, Volume
from blockd.service import upload_examination
from blockd.service.erasures import add_erase, forget
from blockd.service.ports import FrontSpec
from tests.service.transfer_rig import KEY, transfer_rig
from tests.support import stamps
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.object_store import BUCKET
from tests.support.service import DRIVERS, Running, idle, running

SIZE = 4 * 1024**2


@pytest.fixture(params=DRIVERS)
def storage_class(request: pytest.FixtureRequest) -> str:
    """Each class in turn."""
    return str(request.param)


@asynccontextmanager
async def patient(root: Path, storage_class: str = "sbs") -> AsyncIterator[Running]:
    """The service, with a doctor who looks again at once."""
    async with running(root, default_class=storage_class) as run:
        run.service.doctor._second_look_s = 0.01
        yield run


async def volume_in(run: Running, generation: int = 1) -> Volume:
    """A volume, stamped."""
    volumes = run.service.volumes
    volume = await volumes.create(NewVolume("v", None, SIZE, 5000, (), None, None))
    async with asyncio.timeout(20):
        while (await volumes.get(volume.id)).status in TRANSIENT:
            await asyncio.sleep(0.005)
    stamps.stamp((await volumes.device(volume.id)).path, generation)
    return await volumes.get(volume.id)


async def snapshot_in(run: Running, volume: Volume) -> Snapshot:
    """A snapshot of it."""
    snapshots = run.service.snapshots
    taken = await snapshots.create(NewSnapshot(volume.id, "s", None, (), public=False))
    async with asyncio.timeout(20):
        while (await snapshots.get(taken.id)).status in TRANSIENT:
            await asyncio.sleep(0.005)
    return await snapshots.get(taken.id)


async def found(run: Running) -> dict[str, Finding]:
    """What the doctor finds, by kind; each in one line that names its subject."""
    findings = (await run.service.doctor.examine()).findings
    assert len({finding.id for finding in findings}) == len(findings)
    for finding in findings:
        assert "\n" not in finding.explanation + (finding.fix or "") + finding.advice
        assert finding.fix or finding.advice, "nobody is told what to do"
    return {finding.kind: finding for finding in findings}


async def only(run: Running, kind: FindingKind) -> Finding:
    """The one finding there is."""
    findings = await found(run)
    assert set(findings) == {kind}
    return findings[kind]


async def fix(run: Running, *ids: str) -> None:
    """Fix these, or all that asks for nothing; nothing is found after it."""
    outcomes, after = await run.service.doctor.fix(ids or None)
    assert outcomes
    assert [one.failure for one in outcomes] == [None] * len(outcomes)
    await idle(run)
    assert after.findings == () or await found(run) == {}


async def test_healthy_host_with_one_of_everything_gives_no_finding(
    tmp_path: Path, storage_class: str
) -> None:
    async with patient(tmp_path, storage_class) as run:
        assert await found(run) == {}
        volume, deleted = await volume_in(run), await volume_in(run)
        await snapshot_in(run, volume)
        await snapshot_in(run, deleted)
        await run.service.volumes.delete(deleted.id)
        failing = StorageError("no")
        run.driver.fail_next["create"] = failing
        made = await run.service.volumes.create(NewVolume("e", None, SIZE, 5000, (), None, None))
        await idle(run)
        assert (await run.service.volumes.get(made.id)).status is ERROR
        before = set(os.listdir(tmp_path / storage_class / "disks"))
        assert await found(run) == {}
        assert set(os.listdir(tmp_path / storage_class / "disks")) == before
        outcomes, after = await run.service.doctor.fix(None)
        assert (outcomes, after.findings) == ([], ())
        assert (await run.service.host.health()).problems == []


async def test_what_is_under_way_gives_no_finding(tmp_path: Path, storage_class: str) -> None:
    """Held in the middle of its steps, with the turn of its class free."""
    async with patient(tmp_path, storage_class) as run:
        await volume_in(run)
        gate = run.driver.gates["complete"] = asyncio.Event()
        creating = await run.service.volumes.create(
            NewVolume("c", None, SIZE, 5000, (), None, None)
        )
        deleting = await volume_in(run) if storage_class == "sbs" else None
        assert await found(run) == {}
        if deleting is not None:  # between its front and its commit
            assert run.classes[storage_class].deleting == set()
            run.classes[storage_class].deleting.add(deleting.id)
            await run.driver.disconnect(deleting.id)
            assert await found(run) == {}
            run.classes[storage_class].deleting.clear()
            assert set(await found(run)) == {FindingKind.FRONT_MISSING}
        gate.set()
        await idle(run)
        assert (await run.service.volumes.get(creating.id)).status is not ERROR


async def test_disk_that_the_catalog_lacks_becomes_a_snapshot_with_its_bytes(
    tmp_path: Path, storage_class: str
) -> None:
    async with patient(tmp_path, storage_class) as run:
        volume = await volume_in(run, generation=7)
        async with run.driver.turn():
            await run.driver.disconnect(volume.id)
        # As if an older catalog had been restored.
        await run.catalog.write("forget", lambda tx: tx.remove_volume(volume.id))
        finding = await only(run, FindingKind.DISK_UNKNOWN)
        assert volume.disk in finding.explanation
        assert finding.fix is not None
        assert "found-" in finding.fix
        await fix(run)
        (snapshot,) = await run.catalog.read(
            lambda tx: [tx.snapshot(owner.id) for owner in tx.disks.owners(storage_class)]
        )
        assert snapshot is not None
        assert (snapshot.status, snapshot.disk) == (AVAILABLE, volume.disk)
        async with run.driver.reading(volume.disk) as disk:
            stamps.expect(disk.path, 7, 0, SIZE)
        clone = await run.service.volumes.create(
            NewVolume("c", None, None, 5000, (), None, snapshot.id)
        )
        await idle(run)
        stamps.expect((await run.service.volumes.device(clone.id)).path, 7, 0, SIZE)


async def test_disk_unknown_to_the_catalog_that_somebody_uses_is_left_to_a_person(
    tmp_path: Path,
) -> None:
    async with patient(tmp_path) as run:
        volume = await volume_in(run, generation=7)
        await run.catalog.write("forget", lambda tx: tx.remove_volume(volume.id))
        path = (run.driver.device(FrontSpec(volume.id, volume.disk, SIZE))).path
        with open(path, "r+b"):
            findings = await found(run)
            assert set(findings) == {FindingKind.DISK_UNKNOWN, FindingKind.FRONT_UNKNOWN}
            assert findings[FindingKind.DISK_UNKNOWN].fix is None
            outcomes, _ = await run.service.doctor.fix(None)
            assert [one.finding.kind for one in outcomes] == [FindingKind.FRONT_UNKNOWN]
            assert "in use" in str(outcomes[0].failure)
            stamps.expect(path, 7)
        await run.service.doctor.fix(None)  # the front goes
        await fix(run)  # and then the disk can be had


async def test_row_without_its_disk_is_told_until_the_disk_is_back_or_the_row_deleted(
    tmp_path: Path, storage_class: str
) -> None:
    async with patient(tmp_path, storage_class) as run:
        volume = await volume_in(run)
        taken = await snapshot_in(run, volume)
        tag, aside = tmp_path / storage_class / "tags" / taken.disk, tmp_path / "aside"
        tag.rename(aside)
        finding = await only(run, FindingKind.DISK_MISSING)
        assert taken.id in finding.explanation
        assert finding.fix is None
        outcomes, _ = await run.service.doctor.fix(None)
        assert outcomes == []
        aside.rename(tag)
        assert await found(run) == {}
        tag.rename(aside)
        await run.service.snapshots.delete(taken.id)
        await only(run, FindingKind.DISK_MISSING)  # it could be undeleted
        row = await run.catalog.read(lambda tx: tx.snapshot(taken.id))
        assert row is not None
        intent = await run.catalog.write("erase", lambda tx: forget(tx, storage_class, [row]))
        assert intent is not None
        run.service.doctor._operations.submit(intent)
        await idle(run)
        assert await found(run) == {}


async def test_disk_left_of_what_is_in_error_is_erased(tmp_path: Path, storage_class: str) -> None:
    async with patient(tmp_path, storage_class) as run:
        run.driver.fail_next["create"] = StorageError("no")
        made = await run.service.volumes.create(NewVolume("e", None, SIZE, 5000, (), None, None))
        await idle(run)
        async with run.driver.turn():
            await run.driver.create(disk_name(made.id), SIZE)
        finding = await only(run, FindingKind.DISK_LEFT)
        assert made.id in finding.explanation
        await fix(run)
        assert await run.driver.disks() == {}


async def test_front_that_is_missing_is_set_up(tmp_path: Path, storage_class: str) -> None:
    async with patient(tmp_path, storage_class) as run:
        volume = await volume_in(run)
        await run.driver.disconnect(volume.id)
        assert (await only(run, FindingKind.FRONT_MISSING)).subject == volume.id
        await fix(run)
        stamps.expect((await run.service.volumes.device(volume.id)).path, 1)


async def test_front_of_no_volume_is_removed(tmp_path: Path, storage_class: str) -> None:
    async with patient(tmp_path, storage_class) as run:
        volume = await volume_in(run)
        await run.service.volumes.delete(volume.id)
        async with run.driver.turn():
            await run.driver.connect(FrontSpec(volume.id, volume.disk, SIZE))
        assert (await only(run, FindingKind.FRONT_UNKNOWN)).subject == volume.id
        await fix(run)
        assert await run.driver.disk_behind(volume.id) is None
        assert (await run.service.volumes.undelete(volume.id)).status is AVAILABLE


async def test_front_over_another_disk_is_told_and_left(tmp_path: Path) -> None:
    async with patient(tmp_path) as run:
        volume, other = await volume_in(run, generation=1), await volume_in(run, generation=2)
        await run.driver.disconnect(other.id)
        async with run.driver.turn():
            await run.driver.swap(FrontSpec(volume.id, other.disk, SIZE))
        findings = await found(run)
        wrong = findings[FindingKind.FRONT_WRONG]
        assert volume.disk in wrong.explanation
        assert other.disk in wrong.explanation
        assert wrong.fix is None
        with pytest.raises(WrongState):
            await run.service.doctor.fix([wrong.id])
        stamps.expect((await run.service.volumes.device(volume.id)).path, 2)


async def test_front_that_is_shorter_than_its_volume_is_grown(tmp_path: Path) -> None:
    async with patient(tmp_path) as run:
        volume = await volume_in(run)
        await run.catalog.write(
            "longer", lambda tx: tx.put_volume(replace(volume, size_bytes=SIZE - 512))
        )
        assert (await only(run, FindingKind.FRONT_WRONG)).fix is None  # a front never shrinks
        async with run.driver.turn():
            await run.driver.grow(volume.disk, 2 * SIZE)
        await run.catalog.write(
            "longer", lambda tx: tx.put_volume(replace(volume, size_bytes=2 * SIZE))
        )
        assert (await only(run, FindingKind.FRONT_WRONG)).fix == "grow the device"
        await fix(run)
        assert os.stat((await run.service.volumes.device(volume.id)).path).st_size == 2 * SIZE


async def test_ailment_of_the_storage_is_mended_by_it(tmp_path: Path, storage_class: str) -> None:
    async with patient(tmp_path, storage_class) as run:
        run.driver.ailments.append(
            Finding(FindingKind.DEVICE_SUSPENDED, "d", "d is suspended", fix="resume it")
        )
        finding = await only(run, FindingKind.DEVICE_SUSPENDED)
        assert finding.id == f"device-suspended:{storage_class}/d"
        assert (await run.service.host.health()).problems == ["d is suspended (blockctl doctor)"]
        await fix(run)
        assert (await run.service.host.health()).problems == []


async def test_operation_that_is_stuck_is_tried_again_at_once(tmp_path: Path) -> None:
    async with patient(tmp_path) as run:
        volume = await volume_in(run)
        run.driver.fail_next["erase"] = StorageError("busy")

        def erase(tx: object) -> object:
            return add_erase(tx, "sbs", [disk_name(new_id())], [])  # type: ignore[arg-type]

        intent = await run.catalog.write("erase", erase)
        operations = run.service.doctor._operations
        operations.submit(intent)  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            while not operations.retries.problems:
                await asyncio.sleep(0.005)
        run.driver.fail_next["erase"] = StorageError("busy")
        finding = await only(run, FindingKind.OPERATION_STUCK)
        assert "busy" in finding.explanation
        outcomes, _ = await run.service.doctor.fix(None)
        assert "busy" in str(outcomes[0].failure)
        await fix(run)
        assert (await run.service.volumes.get(volume.id)).status is AVAILABLE


async def test_operation_that_nobody_carries_out_is_begun(tmp_path: Path) -> None:
    async with patient(tmp_path) as run:
        volume = await volume_in(run)
        async with run.driver.turn():
            await run.driver.disconnect(volume.id)

        def forget(tx: object) -> None:
            tx.remove_volume(volume.id)  # type: ignore[attr-defined]
            add_erase(tx, "sbs", [volume.disk], [volume.id])  # type: ignore[arg-type]

        await run.catalog.write("erase", forget)
        await only(run, FindingKind.OPERATION_STUCK)
        await fix(run)
        assert await run.driver.disks() == {}


async def test_class_that_cannot_be_examined_is_a_finding(tmp_path: Path) -> None:
    async with patient(tmp_path) as run:
        for _ in range(2):
            run.driver.fail_next["inventory"] = StorageError("the disk is away")
            looked = run.service.doctor._look()
            (finding,) = await looked
            assert finding.kind is FindingKind.NOT_EXAMINED
            assert "the disk is away" in finding.explanation
        with pytest.raises(NotFound):
            await run.service.doctor.fix([finding.id])


async def test_uploads_of_ended_jobs_are_ended_and_those_of_others_only_reported(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_upload(key: str) -> str:
        return str(store.server._client._create_multipart_upload(BUCKET, key, {}))

    others = "of/some body; who"
    async with transfer_rig(tmp_path, store) as rig:
        run = rig.running
        run.service.doctor._second_look_s = 0.01
        snapshot = await rig.snapshot(data_mib=1, size_bytes=SIZE)
        job = await rig.ended(await rig.export(snapshot))
        assert await found(run) == {}
        left, strange = begin_upload(KEY), begin_upload(others)
        await run.catalog.write(
            "left", lambda tx: tx.jobs.put(replace(job, args={**job.args, "upload_id": left}))
        )
        # Somebody else may be uploading just now.
        assert set(await found(run)) == {FindingKind.UPLOAD_LEFT}
        monkeypatch.setattr(upload_examination, "_STRANGE_AFTER", timedelta(0))
        findings = await found(run)
        assert set(findings) == {FindingKind.UPLOAD_LEFT, FindingKind.UPLOAD_UNKNOWN}
        assert findings[FindingKind.UPLOAD_UNKNOWN].fix is None
        command = shlex.split(findings[FindingKind.UPLOAD_UNKNOWN].advice.partition(": ")[2])
        assert command[-4:] == ["--key", others, "--upload-id", strange]
        await run.service.doctor.fix(None)
        assert rig.uploads() == [others]
        assert set(await found(run)) == {FindingKind.UPLOAD_UNKNOWN}
        store.server.abort_uploads()
        assert await found(run) == {}


async def test_server_that_does_not_answer_is_a_finding_and_no_more(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store, patience=0.5) as rig:
        snapshot = await rig.snapshot(data_mib=1, size_bytes=SIZE)
        await rig.ended(await rig.export(snapshot))
        rig.running.service.doctor._second_look_s = 0.01
        store.faults.append(Fault(lambda _: True, "refuse", times=1000))
        finding = await only(rig.running, FindingKind.NOT_EXAMINED)
        assert BUCKET in finding.explanation
        health = await rig.running.service.host.health()
        assert health.problems == [], "the server may answer again, and nobody would take it back"


async def test_job_that_cannot_end_its_upload_is_tried_again_at_once(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store, patience=0.5) as rig:
        snapshot = await rig.snapshot(data_mib=1, size_bytes=SIZE)
        run = rig.running
        run.service.doctor._second_look_s = 0.01
        store.faults += [
            Fault(lambda kind: kind.startswith("PUT part"), "status", status=403, code="NoSuchKey"),
            Fault(lambda kind: kind == "DELETE upload", "refuse", times=1000),
        ]
        job = await rig.export(snapshot)
        jobs = run.service.doctor._jobs
        async with asyncio.timeout(30):
            while not jobs.retries.problems:
                await asyncio.sleep(0.01)
        finding = await only(run, FindingKind.JOB_STUCK)
        assert "not ended yet" in finding.explanation
        store.faults.clear()
        await fix(run)
        await rig.ended(job)
        assert rig.uploads() == []
