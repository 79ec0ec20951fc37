"""The catalog's file is lost, broken or old on the real kernel: all is back from its copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.lab_drivers import THICK_DISK
from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place

pytestmark = pytest.mark.kernel

MIB = 1024**2
SIZE = 8 * MIB + 512  # off the extent grid


@pytest.fixture(params=["thin", "thick"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A volume group of its own for each test: what is left of one must not help the next."""
    disk = Path("/dev/ubdb") if request.param == "thin" else THICK_DISK
    if not disk.is_block_device():
        pytest.skip(f"no {disk}: run inside scripts/lab with three disks")
    made = Place.fresh(tmp_path, kind=request.param, disk=disk)
    yield made
    made.remove_vg()


@dataclass
class Made:
    """A volume that holds 2, its snapshot that holds 1, and one made in the last moment: 3."""

    volume: str
    snapshot: str
    late: str


def fill(daemon: Daemon) -> Made:
    """The last change is just acknowledged when this returns, and then the daemon is killed."""
    api = daemon.api
    volume = api.create_volume("data", SIZE)
    stamps.stamp(api.device(volume), 1)
    snapshot = api.snapshot("monday", volume)
    stamps.stamp(api.device(volume), 2)
    body = {"name": "renamed", "tags": ["a", "b"]}
    api.block("PATCH", f"volumes/{volume}", body)
    until_copied(api)
    late = api.create_volume("late", SIZE)
    stamps.stamp(api.device(late), 3)
    daemon.kill()
    return Made(volume, snapshot, late)


def until_copied(api: Api) -> None:
    deadline = time.monotonic() + 30
    while any(copy["behind"] for copy in api.host("GET", "health")["catalog_copies"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def expect_all_back(place: Place, daemon: Daemon, made: Made) -> dict[str, Any]:
    """Names and tags of what was copied, the bytes of everything; answers the health."""
    api = daemon.api
    deadline = time.monotonic() + 60
    while (health := api.host("GET", "health"))["queued"]:
        assert time.monotonic() < deadline, health
        time.sleep(0.05)
    volume = api.block("GET", f"volumes/{made.volume}")
    assert (volume["name"], volume["tags"], volume["size"]) == ("renamed", ["a", "b"], SIZE)
    stamps.expect(api.device(made.volume), 2)
    snapshot = api.block("GET", f"snapshots/{made.snapshot}")
    assert (snapshot["name"], snapshot["status"]) == ("monday", "available")
    late = api.block("GET", f"volumes/{made.late}")
    assert late["name"] in ("late", f"recovered-{made.late[:8]}")
    with stamps.opened(api.device(made.late)) as device:
        device.expect(3, 0, 8 * MIB)
    clone = api.clone("look", made.snapshot)
    stamps.expect(api.device(clone), 1)
    expect_agreement(place)
    return dict(health)


def lost_files(place: Place) -> list[Path]:
    return sorted(place.state.glob("catalog.sqlite.lost-*"))


def reboot(place: Place) -> None:
    """As after one: no front, and no LV is active."""
    for link in Path("/dev/blockd").glob("*"):
        subprocess.run(["/sbin/dmsetup", "remove", f"blockd-{link.name}"], check=True)
        link.unlink()
    place.lvm("vgchange", "--activate", "n", VG)


def refused(place: Place) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "blockd", "--config", str(place.config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("blockd: ")][-1]


def test_killed_daemon_whose_catalog_is_deleted_has_all_back(place: Place) -> None:
    with Daemon(place) as daemon:
        made = fill(daemon)
    for file in place.state.glob("catalog.sqlite*"):
        file.unlink()
    with Daemon(place) as daemon:
        health = expect_all_back(place, daemon, made)
        assert "is missing: restored from its copy of" in health["problems"][0]
    with Daemon(place) as daemon:
        daemon.api.idle()  # and has no problems: it is told once


def test_garbled_catalog_is_put_aside_and_all_is_back_after_a_reboot(place: Place) -> None:
    with Daemon(place) as daemon:
        made = fill(daemon)
    garbage = b"\0garbage" * 1000
    place.catalog.write_bytes(garbage)
    reboot(place)
    with Daemon(place) as daemon:
        health = expect_all_back(place, daemon, made)
        assert "is not a database of SQLite: restored" in health["problems"][0]
    assert lost_files(place)[0].read_bytes() == garbage


def test_catalog_that_is_older_than_its_copy_is_put_aside(place: Place) -> None:
    with Daemon(place):
        pass
    old = place.state / "backup"
    shutil.copy(place.catalog, old)
    with Daemon(place) as daemon:
        made = fill(daemon)
    for file in place.state.glob("catalog.sqlite*"):
        file.unlink()
    shutil.copy(old, place.catalog)
    with Daemon(place) as daemon:
        health = expect_all_back(place, daemon, made)
        assert "is older than its copy" in health["problems"][0]
    assert lost_files(place)[0].read_bytes() == old.read_bytes()


def test_lost_catalog_without_a_copy_is_not_begun_anew_but_made_of_the_lvs_when_asked(
    place: Place,
) -> None:
    with Daemon(place) as daemon:
        made = fill(daemon)
    for file in place.state.glob("catalog.sqlite*"):
        file.unlink()
    place.lvm("lvremove", "--yes", "--select", "lv_name=~^blockd-catalog-", VG)
    line = refused(place)
    assert "is missing, and the volume groups hold LVs of" in line
    assert "blockd recover-catalog --from-volumes" in line
    assert not place.catalog.exists()
    subprocess.run(
        [sys.executable, "-m", "blockd", "recover-catalog", "--from-volumes",
         "--config", str(place.config)],
        check=True,
    )  # fmt: skip
    with Daemon(place) as daemon:
        api = daemon.api
        for id_, generation in ((made.volume, 2), (made.late, 3)):
            volume = api.block("GET", f"volumes/{id_}")
            assert (volume["name"], volume["size"]) == (f"recovered-{id_[:8]}", SIZE)
            stamps.expect(api.device(id_), generation)
        snapshot = api.block("GET", f"snapshots/{made.snapshot}")
        assert snapshot["parent_volume"]["id"] == made.volume
        stamps.expect(api.device(api.clone("look", made.snapshot)), 1)
        expect_agreement(place)
