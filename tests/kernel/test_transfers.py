"""Exports and imports of real thin volumes, with a real S3 server in the same guest."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place
from tests.support.object_store import Server, object_store

pytestmark = pytest.mark.kernel

MIB, GIB = 1024**2, 1024**3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def daemon(place: Place, server: Server) -> Iterator[Daemon]:
    place = dataclasses.replace(
        place, object_storage=server, trash_keep="0s", overcommit=100.0, high_water_percent=100.0
    )
    with Daemon(place) as running:
        yield running
        for kind in ("volumes", "snapshots"):
            for item in running.api.all(kind):
                running.api.block("DELETE", f"{kind}/{item['id']}")
        running.api.idle()


def scatter(device: Path, size_bytes: int, count_mib: int) -> None:
    """`count_mib` pieces of 1 MiB of noise, a few of them half zeros, all over the device."""
    chance = random.Random(size_bytes)
    places = sorted(chance.sample(range(size_bytes // MIB - 1), count_mib))
    descriptor = os.open(device, os.O_WRONLY)
    try:
        for number, place in enumerate(places):
            noise = os.urandom(MIB // 2)
            other = bytes(MIB // 2) if number % 10 == 9 else os.urandom(MIB // 2)
            os.pwrite(descriptor, noise + other, place * MIB)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def chunks(api: Api) -> int:
    """64 KiB chunks that are used in the pool."""
    (pool,) = api.host("GET", "pools")["pools"]
    return int(pool["used"]) // 65536


def make(api: Api, size_bytes: int, count_mib: int) -> tuple[str, str]:
    """A volume with data and a snapshot of it."""
    volume_id = api.create_volume("v", size_bytes)
    scatter(api.device(volume_id), size_bytes, count_mib)
    return volume_id, api.snapshot("s", volume_id)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_round_trip_gives_the_same_bytes_and_a_volume_as_thin_as_before(
    daemon: Daemon, server: Server, compression: str
) -> None:
    api, size = daemon.api, GIB + 512
    volume_id, snapshot_id = make(api, size, 40)
    used = chunks(api)
    api.export(snapshot_id, "round/trip.qcow2", compression=compression)
    job = api.job_of(snapshot_id)
    assert (job["state"], job["error"]) == ("succeeded", None)
    image = server.object("round/trip.qcow2")
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw"]
    subprocess.run([*compare, image, api.device(volume_id)], check=True)

    imported = api.import_snapshot("back", "round/trip.qcow2")
    back = api.job_of(imported)
    assert (back["state"], back["content_digest"]) == ("succeeded", job["content_digest"])
    assert api.block("GET", f"snapshots/{imported}")["size"] == size
    assert chunks(api) - used <= used, "the import uses more than the export had"
    clone = api.clone("again", imported)
    subprocess.run(["cmp", api.device(clone), api.device(volume_id)], check=True)
    os.unlink(image)


def test_objects_of_the_same_data_have_the_same_size_however_large_the_volume(
    daemon: Daemon, server: Server
) -> None:
    sizes = []
    for size_bytes in (GIB, 10 * GIB, 100 * GIB):
        volume_id, snapshot_id = make(daemon.api, size_bytes, 60)
        daemon.api.export(snapshot_id, "same/data.qcow2")
        assert daemon.api.job_of(snapshot_id)["state"] == "succeeded"
        image = server.object("same/data.qcow2")
        sizes.append(image.stat().st_size)
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
        verified = daemon.api.host(
            "POST", "object-storage/verify", {"bucket": "backups", "key": "same/data.qcow2"}
        )
        daemon.api.idle()
        assert daemon.api.host("GET", f"jobs/{verified['id']}")["state"] == "succeeded"
        daemon.api.block("DELETE", f"volumes/{volume_id}")
        daemon.api.block("DELETE", f"snapshots/{snapshot_id}")
        daemon.api.idle()
    assert max(sizes) <= 1.25 * min(sizes), sizes  # tables: 64 KiB for each 512 MiB touched


def test_only_what_is_allocated_is_read_from_the_disk(daemon: Daemon) -> None:
    volume_id, snapshot_id = make(daemon.api, 20 * GIB, 60)
    del volume_id
    Path("/proc/sys/vm/drop_caches").write_text("3")
    before = _sectors_read(daemon.place.disk)
    daemon.api.export(snapshot_id, "read/once.qcow2")
    assert daemon.api.job_of(snapshot_id)["state"] == "succeeded"
    read = (_sectors_read(daemon.place.disk) - before) * 512
    of_metadata = 3 * MIB  # LVM's and dm-thin's
    assert read <= 1.02 * 60 * MIB + 2 * MIB + of_metadata, read


def test_import_into_a_pool_that_runs_full_fails_and_gives_the_room_back(
    daemon: Daemon, server: Server
) -> None:
    api = daemon.api
    volume_id, snapshot_id = make(api, GIB, 100)
    api.export(snapshot_id, "full/large.qcow2")
    assert api.job_of(snapshot_id)["state"] == "succeeded"
    (pool,) = api.host("GET", "pools")["pools"]
    filler = api.create_volume("filler", 8 * GIB)
    fill = (pool["size"] - pool["used"]) // MIB - 40
    zero_out = ["/sbin/blkdiscard", "--zeroout", "--length", f"{fill}MiB"]
    subprocess.run([*zero_out, str(api.device(filler))], check=True)
    daemon.place.lvm("lvchange", "--errorwhenfull", "y", f"{VG}/pool")
    before = chunks(api)

    imported = api.import_snapshot("large", "full/large.qcow2")
    job = api.job_of(imported)
    assert job["state"] == "failed"
    assert "No space left" in job["error"] or "Input/output" in job["error"], job
    api.idle(despite="above its low-water mark and cannot be extended")
    shown = api.host("GET", f"snapshots/{imported}")
    assert shown["status"] == "error"
    assert job["error"] in shown["error"]
    assert chunks(api) <= before
    api.block("DELETE", f"volumes/{filler}")
    api.idle()
    again = api.import_snapshot("again", "full/large.qcow2")
    assert api.job_of(again)["state"] == "succeeded"
    clone = api.clone("look", again)
    subprocess.run(["cmp", api.device(clone), api.device(volume_id)], check=True)
    server.object("full/large.qcow2").unlink()


def _sectors_read(disk: Path) -> int:
    return int(Path(f"/sys/block/{disk.name}/stat").read_text().split()[2])
