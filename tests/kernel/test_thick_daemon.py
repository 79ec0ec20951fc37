"""The daemon with a thick class, on the real kernel: a volume's life, losses, and sudden ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.contract.lab_drivers import THICK_DISK
from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.daemon import VG, Daemon, Place
from tests.support.examination import device_of, fix, found
from tests.support.thin_kernel import dmsetup

pytestmark = pytest.mark.kernel

MIB = 1024**2
SIZE = 64 * MIB + 512


@pytest.fixture(scope="module")
def thick_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose one class is thick."""
    if not THICK_DISK.is_block_device():
        pytest.skip(f"no {THICK_DISK}: run inside scripts/lab with three disks")
    root = tmp_path_factory.mktemp("thick")
    (root / "run").mkdir()
    place = Place(state=root, run=root / "run", disk=THICK_DISK, kind="thick", trash_keep="0s")
    place.make_pool()
    yield place
    place.remove_vg()


@pytest.fixture
def daemon(thick_place: Place, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Its parameter: the least size of a snapshot's store."""
    least = getattr(request, "param", thick_place.snapshot_size_least)
    with Daemon(replace(thick_place, snapshot_size_least=least)) as running:
        yield running
    with Daemon(thick_place) as running:
        for kind in ("volumes", "snapshots"):
            for item in running.api.all(kind):
                running.api.block("DELETE", f"{kind}/{item['id']}")
        until(lambda: not our_lvs(thick_place))


def until(what: Callable[[], Any], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def our_lvs(place: Place) -> list[str]:
    report = json.loads(place.lvm("lvs", "--reportformat", "json", "-o", "lv_name", VG))
    names = [row["lv_name"] for row in report["report"][0]["lv"]]
    return [name for name in names if not name.startswith("blockd-catalog-")]


def test_volume_lives_through_snapshots_revert_growth_and_its_own_deletion(
    daemon: Daemon,
) -> None:
    api = daemon.api
    volume_id = api.create_volume("v", SIZE)
    path = api.device(volume_id)
    stamps.expect(path, 0)
    stamps.stamp(path, 1)
    first = api.snapshot("first", volume_id)
    stamps.stamp(path, 2)
    second = api.snapshot("second", volume_id)
    stamps.stamp(path, 3)

    api.host("POST", f"volumes/{volume_id}/revert", {"snapshot_id": first})
    api.settled("volumes", volume_id)
    stamps.expect(api.device(volume_id), 1)
    snapshots = {item["id"] for item in api.all("snapshots")}
    (kept,) = snapshots - {first, second}
    for snapshot_id, generation in ((first, 1), (second, 2), (kept, 3)):
        stamps.expect(api.device(api.clone("c", snapshot_id)), generation)

    api.block("PATCH", f"volumes/{volume_id}", {"size": 2 * SIZE})
    api.settled("volumes", volume_id)
    with stamps.opened(api.device(volume_id)) as device:
        assert device.size_bytes == 2 * SIZE
        device.expect(1, 0, SIZE // 4096 * 4096)
        device.expect(0, (SIZE // 4096 + 1) * 4096)

    api.block("DELETE", f"volumes/{volume_id}")
    api.idle()
    for snapshot_id, generation in ((first, 1), (second, 2), (kept, 3)):
        stamps.expect(api.device(api.clone("d", snapshot_id)), generation)


@pytest.mark.parametrize("daemon", ["32MiB"], indirect=True)
def test_lost_snapshot_goes_to_error_and_the_volume_goes_on(daemon: Daemon) -> None:
    api = daemon.api
    volume_id = api.create_volume("v", 512 * MIB)
    lost = api.snapshot("lost", volume_id)
    (pool,) = api.host("GET", "pools")["pools"]
    api.block("POST", "volumes", {"name": "filler", "from_empty": {"size": pool["free"]}})
    until(lambda: api.host("GET", "pools")["pools"][0]["free"] == 0)
    stamps.stamp(api.device(volume_id), 2)
    until(lambda: api.block("GET", f"snapshots/{lost}")["status"] == "error")
    assert "no room for it to grow" in api.host("GET", f"snapshots/{lost}")["error"]
    stamps.expect(api.device(volume_id), 2)


def test_daemon_killed_while_a_volume_is_zeroed_finishes_it(
    daemon: Daemon, thick_place: Place
) -> None:
    # Old bytes that must not be seen.
    old = daemon.api.create_volume("old", 256 * MIB)
    stamps.stamp(daemon.api.device(old), 9)
    daemon.api.block("DELETE", f"volumes/{old}")
    daemon.api.idle()
    made = daemon.api.block("POST", "volumes", {"name": "v", "from_empty": {"size": 256 * MIB}})
    until(lambda: our_lvs(thick_place))
    daemon.kill()
    with Daemon(thick_place) as again:
        again.api.settled("volumes", made["id"])
        stamps.expect(again.api.device(made["id"]), 0)


def test_daemon_killed_in_a_revert_ends_in_old_or_new_bytes(
    daemon: Daemon, thick_place: Place
) -> None:
    api = daemon.api
    volume_id = api.create_volume("v", 256 * MIB)
    stamps.stamp(api.device(volume_id), 1, 0, 200 * MIB)
    snapshot_id = api.snapshot("s", volume_id)
    stamps.stamp(api.device(volume_id), 2, 0, 20 * MIB)
    body = {"snapshot_id": snapshot_id, "keep_previous": False}
    api.host("POST", f"volumes/{volume_id}/revert", body)
    until(_merges)
    daemon.kill()
    with Daemon(thick_place) as again:
        again.api.settled("volumes", volume_id)
        stamps.expect(again.api.device(volume_id), 1, 0, 200 * MIB)
        stamps.expect(again.api.device(again.api.clone("c", snapshot_id)), 1, 0, 200 * MIB)


def _merges() -> bool:
    done = subprocess.run(
        ["/sbin/dmsetup", "status", "--target", "snapshot-merge"],
        capture_output=True,
        text=True,
        check=True,
    )
    return "snapshot-merge" in done.stdout


def test_make_pool_of_a_thick_class_says_what_there_is(thick_place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blockd", "make-pool", "--config", str(thick_place.config)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"volume group {VG} exists: 3.9" in done.stdout
    assert "a thick class needs no pool" in done.stdout


@pytest.mark.parametrize("daemon", ["8MiB"], indirect=True)
def test_doctor_resumes_suspended_layers_of_a_volume(daemon: Daemon, thick_place: Place) -> None:
    api = daemon.api
    volume_id = api.create_volume("v", SIZE)
    stamps.stamp(api.device(volume_id), 1)
    snapshot_id = api.snapshot("s", volume_id)
    assert found(api) == {}, "a healthy host"
    for disk, layer in ((volume_id, ""), (volume_id, "-real"), (snapshot_id, "-cow")):
        dmsetup("suspend", "--noflush", device_of(f"blockd-{disk}") + layer)
        assert set(found(api)) == {"device-suspended"}
        fix(api)
    stamps.stamp(api.device(volume_id), 2, 0, MIB)  # more could be too fast for the store to grow
    api.idle()
    expect_agreement(thick_place)
