"""Exports and imports from end to end: real qemu-img, real S3, files as disks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from blockd.domain.errors import (
    BucketUnfit,
    ImageRefused,
    InvalidArguments,
    ObjectMissing,
    TransientState,
)
from blockd.domain.job import Compression, JobFilter, JobState
from blockd.domain.listing import Page
from blockd.domain.states import Status
from blockd.domain.units import GIB, MIB
from blockd.transfer import held_tables
from tests.service.transfer_rig import KEY, TransferRig, check_image, transfer_rig
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.thick_files import ThickFileDriver


@pytest.mark.parametrize("compression", list(Compression))
async def test_round_trip_gives_the_same_bytes_size_and_holes(
    tmp_path: Path, store: FaultyStore, compression: Compression
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot()
        job = await rig.ended(await rig.export(snapshot, compression=compression))
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)
        check_image(rig.server.object(KEY), rig.disk(snapshot))
        assert job.bytes_done == job.bytes_total == rig.server.object(KEY).stat().st_size

        imported, begun = await rig.restore()
        assert (imported.status, imported.size_bytes) == (Status.CREATING, snapshot.size_bytes)
        assert imported.parent is None
        restored = await rig.ended(begun)
        assert (restored.state, restored.error) == (JobState.SUCCEEDED, None)
        assert restored.content_digest == job.content_digest
        same = ["cmp", "-n", str(snapshot.size_bytes), rig.disk(imported), rig.disk(snapshot)]
        subprocess.run(same, check=True, timeout=60)
        assert rig.disk(imported).stat().st_blocks <= rig.disk(snapshot).stat().st_blocks

        snapshots = rig.running.service.snapshots
        for one in (snapshot, imported):
            row = await snapshots.get(one.id)
            assert (row.status, row.content_digest) == (Status.AVAILABLE, job.content_digest)
        assert rig.uploads() == []


@pytest.mark.parametrize("memory_bytes", [0, held_tables.MEMORY_BYTES])
async def test_compressed_export_of_a_huge_disk_holds_its_tables_back(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    monkeypatch.setattr(held_tables, "MEMORY_BYTES", memory_bytes)
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot(data_mib=100, size_bytes=200 * GIB)
        with capture_logs() as logs:
            job = await rig.ended(await rig.export(snapshot, compression=Compression.ZSTD))
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)
        check_image(rig.server.object(KEY), rig.disk(snapshot))
        held = [log["bytes"] for log in logs if log["event"] == "held on scratch"]
        # 5 MiB of tables are held, of some 6.
        assert len(held) == (memory_bytes == 0)
        assert all(0 < one < MIB for one in held)


async def test_export_of_an_empty_volume_is_an_empty_image(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot(data_mib=0, size_bytes=MIB)
        job = await rig.ended(await rig.export(snapshot))
        assert job.state is JobState.SUCCEEDED
        check_image(rig.server.object(KEY), rig.disk(snapshot))


async def test_verify_accepts_what_was_exported_and_names_damage(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        exported = await rig.ended(await rig.export(await rig.snapshot(data_mib=6)))
        transfers = rig.running.service.transfers
        good = await rig.ended(await transfers.verify("backups", KEY))
        assert (good.state, good.content_digest) == (JobState.SUCCEEDED, exported.content_digest)
        image = rig.server.object(KEY)
        content = bytearray(image.read_bytes())
        content[len(content) // 2] ^= 1
        image.write_bytes(content)
        bad = await rig.ended(await transfers.verify("backups", KEY))
        assert bad.state is JobState.FAILED
        assert "is damaged" in str(bad.error)
        imported, begun = await rig.restore()
        failed = await rig.ended(begun)
        assert "is damaged" in str(failed.error)
        assert (await rig.running.service.snapshots.get(imported.id)).status is Status.ERROR


async def test_verify_of_a_foreign_image_says_that_there_is_no_digest(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        _foreign(rig, "foreign.qcow2", "4M")
        job = await rig.ended(
            await rig.running.service.transfers.verify("backups", "foreign.qcow2")
        )
        assert "bears no digest" in str(job.error)


async def test_import_of_a_foreign_image_takes_a_larger_size_and_refuses_a_smaller(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        _foreign(rig, "foreign.qcow2", "4M")
        imported, begun = await rig.restore("foreign.qcow2", 6 * MIB)
        job = await rig.ended(begun)
        assert (job.state, imported.size_bytes) == (JobState.SUCCEEDED, 6 * MIB)
        with pytest.raises(InvalidArguments, match="size must be greater or equal to 4194304"):
            await rig.restore("foreign.qcow2", 3 * MIB)


async def test_what_cannot_be_imported_is_refused_at_once_and_nothing_is_made(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store, max_import_size="1GiB") as rig:
        _foreign(rig, "large.qcow2", "2G")
        rig.server.object("page.html").write_text("<html>no image</html>")
        for key, error, words in (
            ("large.qcow2", InvalidArguments, "max_import_size"),
            ("page.html", ImageRefused, "no QCOW2"),
            ("missing.qcow2", ObjectMissing, "no object"),
        ):
            with pytest.raises(error, match=words):
                await rig.restore(key)
        with pytest.raises(BucketUnfit, match="no bucket"):
            await rig.running.service.transfers.verify("nobucket", "some.qcow2")
        _, count = await rig.running.service.transfers.jobs(JobFilter(), Page())
        assert count == 0
        assert await rig.running.driver.disks() == {}


async def test_snapshot_that_is_exported_can_neither_be_deleted_nor_exported_again(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        snapshot = await rig.snapshot(data_mib=2)
        store.faults.append(Fault(lambda kind: kind == "PUT part 1", "hang"))
        job = await rig.export(snapshot)
        await store.hanging.wait()
        with pytest.raises(TransientState, match="exporting"):
            await rig.running.service.snapshots.delete(snapshot.id)
        with pytest.raises(TransientState, match="exporting"):
            await rig.export(snapshot, "other.qcow2")
        store.released.set()
        assert (await rig.ended(job)).state is JobState.SUCCEEDED
        await rig.running.service.snapshots.delete(snapshot.id)


async def test_two_exports_never_write_the_same_object_at_once(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store) as rig:
        first, second = await rig.snapshot(data_mib=2), await rig.snapshot(data_mib=2)
        store.faults.append(Fault(lambda kind: kind == "PUT part 1", "hang"))
        job = await rig.export(first)
        await store.hanging.wait()
        with pytest.raises(TransientState, match="writing the same object"):
            await rig.export(second)
        store.released.set()
        assert (await rig.ended(job)).state is JobState.SUCCEEDED


def _foreign(rig: TransferRig, key: str, size: str) -> None:
    """An image that qemu-img wrote, with a little in it."""
    path = rig.server.object(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True, timeout=60)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 200k", path]
    subprocess.run(write, check=True, timeout=60, stdout=subprocess.DEVNULL)


async def test_thick_snapshot_comes_back_whole_though_new_space_holds_old_bytes(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with transfer_rig(tmp_path, store, default_class="bssd") as rig:
        snapshot = await rig.snapshot(data_mib=8)
        job = await rig.ended(await rig.export(snapshot))
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)
        imported, begun = await rig.restore()
        done = await rig.ended(begun)
        assert (done.state, done.content_digest) == (JobState.SUCCEEDED, job.content_digest)
        same = ["cmp", "-n", str(snapshot.size_bytes), rig.disk(imported), rig.disk(snapshot)]
        subprocess.run(same, check=True, timeout=60)
        row = await rig.running.service.snapshots.get(imported.id)
        assert (row.storage_class, row.origin_disk) == ("bssd", None)


async def test_export_of_a_snapshot_that_is_lost_meanwhile_fails_with_its_reason(
    tmp_path: Path, store: FaultyStore
) -> None:
    store.faults.append(Fault(lambda kind: kind.startswith("PUT"), "hang"))
    async with transfer_rig(tmp_path, store, default_class="bssd") as rig:
        driver = rig.running.driver
        assert isinstance(driver, ThickFileDriver)
        snapshot = await rig.snapshot(data_mib=2)
        begun = await rig.export(snapshot)
        await store.hanging.wait()
        driver.lose(snapshot.disk, "its store is full")
        job = await rig.ended(begun)
        assert (job.state, job.error) == (
            JobState.FAILED,
            f"snapshot {snapshot.id}: its store is full",
        )
        row = await rig.running.service.snapshots.get(snapshot.id)
        assert (row.status, row.error) == (Status.ERROR, "its store is full")
        assert rig.uploads() == []
