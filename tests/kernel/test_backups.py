"""Backups of metadata of a live pool, and putting them back by the documented commands."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api, ApiError
from tests.support.crash_daemon import Death
from tests.support.daemon import VG, Daemon, Place
from tests.support.thin_kernel import POOL, dmsetup, tell_pool

pytestmark = pytest.mark.kernel

MIB = 1024**2
SIZE = 16 * MIB
RECOVERY = Path(__file__).parents[2] / "docs" / "recovery.md"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A volume group of its own for each test."""
    disk = Path("/dev/ubdb")
    if not disk.is_block_device():
        pytest.skip(f"no {disk}: run inside scripts/lab with two disks")
    made = Place.fresh(tmp_path, disk=disk)
    yield made
    made.remove_vg()


@contextmanager
def writer(device: Path) -> Iterator[None]:
    """Writes all over the device for the length of the block, at once and until its end."""
    begun, end = threading.Event(), threading.Event()

    def write() -> None:
        descriptor = os.open(device, os.O_WRONLY)
        try:
            while not end.is_set():
                for offset in range(0, SIZE, MIB):
                    os.pwrite(descriptor, os.urandom(65536), offset)
                os.fsync(descriptor)
                begun.set()
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        end.set()
        thread.join()


def back_up(api: Api) -> str:
    """What the files of a new backup begin with."""
    (backup,) = api.host("POST", "backups", {})["backups"]
    (vg,) = (file["path"] for file in backup["files"] if file["kind"] == "vg")
    return str(vg.removesuffix(".vg"))


def filled(place: Place) -> tuple[str, str, str]:
    """A volume that holds 2, its snapshot that holds 1, and a backup taken beside a writer."""
    with Daemon(place) as daemon:
        api = daemon.api
        volume = api.create_volume("data", SIZE)
        stamps.stamp(api.device(volume), 1)
        snapshot = api.snapshot("monday", volume)
        stamps.stamp(api.device(volume), 2)
        busy = api.create_volume("busy", SIZE)
        with writer(api.device(busy)):
            backup = back_up(api)
    return volume, snapshot, backup


def expect_filled(place: Place, volume: str, snapshot: str) -> None:
    with Daemon(place) as daemon:
        api = daemon.api
        stamps.expect(api.device(volume), 2)
        stamps.expect(api.device(api.clone("look", snapshot)), 1)
        api.idle()


def documented(place: Place, backup: str, *names: str) -> None:
    """Run blocks of docs/recovery.md, with this place's values for the documentation's."""
    blocks = dict(
        re.findall(r"^```sh\n# (\w+)\n(.*?)^```$", RECOVERY.read_text(), re.MULTILINE | re.DOTALL)
    )
    ours = {
        "/run/blockd/lvm": f"{place.run}/lvm",
        "VG=blockd\n": f"VG={VG}\n",
        "/var/lib/blockd/backups/sbs.000042.20261126T174500Z": backup,
        "/dev/sdX": str(place.disk),
    }
    script = "".join(blocks[name] for name in ("values", *names))
    for theirs, own in ours.items():
        assert theirs in "".join(blocks.values())
        script = script.replace(theirs, own)
    done = subprocess.run(
        ["/bin/bash", "-euxc", script],
        env={"DM_DISABLE_UDEV": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def metadata_extents() -> list[tuple[int, int]]:
    """Where on the disk the pool's metadata are: (first sector, sectors)."""
    lines = dmsetup("table", f"{VG}-pool_tmeta").splitlines()
    return [(int(words[4]), int(words[1])) for words in map(str.split, lines)]


def wipe(disk: Path, first: int, size: int) -> None:
    descriptor = os.open(disk, os.O_WRONLY)
    try:
        os.pwrite(descriptor, bytes(size), first)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fails(place: Place, *argv: str) -> bool:
    env = {"LVM_SYSTEM_DIR": f"{place.run}/lvm", "DM_DISABLE_UDEV": "1"}
    done = subprocess.run(["/sbin/lvm", *argv], env=env, capture_output=True, check=False)
    return done.returncode != 0


def test_pool_whose_metadata_are_wiped_is_back_from_the_backup(place: Place) -> None:
    volume, snapshot, backup = filled(place)
    extents = metadata_extents()
    documented(place, backup, "rest")
    for first, sectors in extents:
        wipe(place.disk, first * 512, sectors * 512)
    assert fails(place, "lvchange", "--activate", "y", f"{VG}/pool")
    documented(place, backup, "mappings")
    expect_filled(place, volume, snapshot)


def test_volume_group_whose_head_and_text_are_wiped_is_back_from_the_backup(place: Place) -> None:
    volume, snapshot, backup = filled(place)
    documented(place, backup, "rest")
    wipe(place.disk, 0, 60 * MIB)  # LVM has 64 MiB there for the text of 5,000 LVs
    assert fails(place, "vgs", VG)
    documented(place, backup, "head", "text")
    expect_filled(place, volume, snapshot)


def test_text_and_mappings_of_one_number_go_back_behind_later_changes(place: Place) -> None:
    volume, snapshot, backup = filled(place)
    with Daemon(place) as daemon:
        daemon.api.snapshot("later", volume)
    extents = metadata_extents()
    documented(place, backup, "rest")
    for first, sectors in extents:
        wipe(place.disk, first * 512, sectors * 512)
    documented(place, backup, "text", "mappings")
    with Daemon(place) as daemon:
        stamps.expect(daemon.api.device(volume), 2)
        stamps.expect(daemon.api.device(daemon.api.clone("look", snapshot)), 1)


def test_backups_and_the_doctor_ask_for_the_one_metadata_snapshot_at_once(place: Place) -> None:
    with Daemon(place) as daemon, ThreadPoolExecutor(4) as threads:
        daemon.api.create_volume("data", SIZE)
        asked = [("POST", "backups"), ("GET", "doctor")] * 3
        api = Api(place.run / "blockd.sock", timeout_s=60)
        answers = [
            threads.submit(api.host, method, path, {} if method == "POST" else None)
            for method, path in asked
        ]
        for answer in answers:
            answer.result()
        daemon.api.idle()
    assert not held()


def held() -> bool:
    """Whether the kernel holds a metadata snapshot: a block's number in place of `-`."""
    return dmsetup("status", POOL).split()[6] != "-"


def test_daemon_killed_with_the_metadata_snapshot_held_leaves_none_after_a_start(
    place: Place,
) -> None:
    death = Death(at=0, event="after dm message reserve_metadata_snap")
    with Daemon(place, death) as daemon:
        daemon.api.create_volume("data", SIZE)
        daemon.arm()
        with pytest.raises(ConnectionError):
            daemon.api.host("POST", "backups", {})
        daemon.ended()
    assert held()
    with Daemon(place) as daemon:
        assert not held()
        back_up(daemon.api)
        assert not held()
        assert not list((place.state / "backups").glob(".*"))
        expect_agreement(place)


def test_failures_are_told_and_pass(place: Place) -> None:
    with Daemon(place) as daemon:
        api, folder = daemon.api, place.state / "backups"
        api.create_volume("data", SIZE)  # with the first one the pool's device has its name

        def refused() -> Any:
            with pytest.raises(ApiError) as refusal:
                api.host("POST", "backups", {})
            assert refusal.value.status == 412
            assert not list(folder.glob(".*"))
            why = refusal.value.body["help_message"]
            assert any(why in line for line in api.host("GET", "health")["problems"])
            return why

        tell_pool("reserve_metadata_snap")  # another program's
        try:
            refused()
        finally:
            tell_pool("release_metadata_snap")
        assert [path.suffix for path in folder.iterdir()] == [".vg"]
        back_up(api)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
        try:
            (folder / "filler").write_bytes(bytes(60 * 1024))
            assert "No space left" in refused() or "left free" in refused()
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        back_up(api)
        assert not held()
        api.idle()
