"""Trouble on the real kernel: LVM or the daemon hangs or dies, disks are busy, pools full."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import stamps, thin_kernel
from tests.support.agreement import expect_agreement
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place
from tests.support.vg_lock import vg_lock_held

pytestmark = pytest.mark.kernel

MIB = 1024**2


def until(what: Callable[[], bool], timeout_s: float = 30) -> float:
    """Wait for a condition; how many seconds it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, "did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def is_suspended(volume_id: str) -> bool:
    """What the kernel says of a front."""
    done = subprocess.run(
        ["/sbin/dmsetup", "info", "-c", "--noheadings", "-o", "suspended", f"blockd-{volume_id}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip() == "Suspended"


def status(api: Api, kind: str, resource_id: str) -> str:
    """The API's word."""
    return str(api.block("GET", f"{kind}/{resource_id}")["status"])


def test_pool_that_is_gone_for_a_moment_is_waited_for(place: Place) -> None:
    pool = f"{VG}-pool"  # so is it called while no volume uses it: this is the first test here
    with Daemon(place) as daemon, ThreadPoolExecutor(1) as thread:
        uuid = thin_kernel.dmsetup("info", "-c", "--noheadings", "-o", "uuid", pool)
        table = thin_kernel.dmsetup("table", pool)
        thin_kernel.dmsetup("remove", pool)
        health = daemon.api.host("GET", "health")
        assert f"{VG}/pool is not active" in health["problems"][0]
        thin_kernel.dmsetup("create", pool, "--uuid", uuid, "--notable")
        asked = thread.submit(daemon.api.host, "GET", "health")
        with pytest.raises(TimeoutError):
            asked.result(timeout=0.5)
        thin_kernel.dmsetup("load", pool, "--table", table)
        thin_kernel.dmsetup("resume", pool)
        assert asked.result(timeout=30)["pools"]
        daemon.api.create_volume("v", 8 * MIB)


def test_snapshot_whose_lvm_command_hangs_becomes_error_resumes_the_front_and_leaves_no_lv(
    place: Place,
) -> None:
    place = dataclasses.replace(place, max_suspend="3s")
    with Daemon(place) as daemon:
        api = daemon.api
        volume_id = api.create_volume("hang", 8 * MIB)
        stamps.stamp(api.device(volume_id), 1)
        with vg_lock_held(VG):
            body = {"volume_id": volume_id, "name": "late"}
            snapshot_id = api.block("POST", "snapshots", body)["id"]
            until(lambda: status(api, "snapshots", snapshot_id) == "error")
            assert not is_suspended(volume_id)
            stamps.stamp(api.device(volume_id), 2)  # writes pass while LVM still hangs
            reason = api.host("GET", f"snapshots/{snapshot_id}")["error"]
            assert "did not end within 3 s" in reason
        api.idle()
        expect_agreement(place)
        fine = api.snapshot("fine", volume_id)
        stamps.expect(api.device(api.clone("look", fine)), 2)


def test_daemon_that_hangs_while_a_front_is_suspended_has_it_resumed_by_the_watchdog(
    place: Place,
) -> None:
    place = dataclasses.replace(place, max_suspend="2s")
    with Daemon(place) as daemon:
        api = daemon.api
        volume_id = api.create_volume("stopped", 8 * MIB)
        with vg_lock_held(VG):
            body = {"volume_id": volume_id, "name": "never"}
            snapshot_id = api.block("POST", "snapshots", body)["id"]
            until(lambda: is_suspended(volume_id))
            os.kill(daemon.pid, signal.SIGSTOP)
            try:
                took_s = until(lambda: not is_suspended(volume_id))
                assert took_s < 10
            finally:
                os.kill(daemon.pid, signal.SIGCONT)
        until(lambda: status(api, "snapshots", snapshot_id) == "error")
        api.idle()
        expect_agreement(place)


def test_daemon_killed_while_lvm_hangs_resumes_the_front_and_the_next_waits_for_lvm(
    place: Place,
) -> None:
    with Daemon(place) as daemon:
        api = daemon.api
        volume_id = api.create_volume("survivor", 8 * MIB)
        stamps.stamp(api.device(volume_id), 1)
        with vg_lock_held(VG):
            body = {"volume_id": volume_id, "name": "finished later"}
            snapshot_id = api.block("POST", "snapshots", body)["id"]
            until(lambda: is_suspended(volume_id))
            daemon.kill()
            until(lambda: not is_suspended(volume_id), timeout_s=10)
            second = subprocess.Popen(
                ["python", "-m", "blockd", "--config", str(place.config)],
                stderr=subprocess.DEVNULL,
            )
            time.sleep(3)
            assert second.poll() is None
            assert not (place.run / "blockd.sock").exists() or _refuses(place)
        until(lambda: not _refuses(place))
        assert api.settled("snapshots", snapshot_id) == snapshot_id
        api.idle()
        expect_agreement(place)
        stamps.expect(api.device(api.clone("look", snapshot_id)), 1)
        second.terminate()
        assert second.wait(60) == 0


def _refuses(place: Place) -> bool:
    try:
        Api(place.run / "blockd.sock").host("GET", "health")
    except OSError:
        return True
    return False


def test_daemon_told_to_stop_parks_what_waits_and_the_next_finishes_it(place: Place) -> None:
    with Daemon(place) as daemon:
        volume_id = daemon.api.create_volume("parked", 8 * MIB)
        asked = [
            daemon.api.block("POST", "snapshots", {"volume_id": volume_id, "name": f"p{number}"})
            for number in range(6)
        ]
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.ended() == 0
    with Daemon(place) as daemon:
        for snapshot in asked:
            daemon.api.settled("snapshots", snapshot["id"])
        daemon.api.idle()
        expect_agreement(place)


def test_lvm_processes_per_verb_are_as_few_as_promised(place: Place) -> None:
    with Daemon(place) as daemon:
        api = daemon.api
        api.idle()
        counted = _Counter(place)
        volume_id = api.create_volume("counted", 8 * MIB)
        assert counted.more() == 1
        snapshot_id = api.snapshot("counted", volume_id)
        assert counted.more() == 1
        clone_id = api.clone("counted too", snapshot_id)
        assert counted.more() == 1
        api.block("PATCH", f"volumes/{clone_id}", {"size": 64 * MIB})
        api.settled("volumes", clone_id)
        assert counted.more() == 1
        api.host("POST", f"volumes/{volume_id}/revert", {"snapshot_id": snapshot_id})
        api.settled("volumes", volume_id)
        assert counted.more() == 2
        api.block("DELETE", f"volumes/{clone_id}")
        api.host("POST", f"volumes/{clone_id}/undelete")
        api.all("volumes")
        api.all("snapshots")
        api.host("GET", "pools")
        assert counted.more() == 0


class _Counter:
    def __init__(self, place: Place) -> None:
        self._place, self._seen = place, 0
        self.more()

    def more(self) -> int:
        """LVM processes started since the last call, as /metrics tells."""
        done = subprocess.run(
            ["curl", "-s", "--unix-socket", str(self._place.run / "blockd.sock"),
             "http://localhost/metrics"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = done.stdout.splitlines()
        total = sum(
            int(float(line.rpartition(" ")[2]))
            for line in lines
            if line.startswith("blockd_lvm_processes_total{")
        )
        new, self._seen = total - self._seen, total
        return new


def test_volume_that_is_mounted_can_be_snapshotted_but_not_deleted_or_reverted(
    place: Place, tmp_path: Path
) -> None:
    with Daemon(place) as daemon:
        api = daemon.api
        volume_id = api.create_volume("mounted", 64 * MIB)
        device = api.device(volume_id)
        subprocess.run(["/sbin/mkfs.ext4", "-q", str(device)], check=True)
        subprocess.run(["/bin/mount", str(device), str(tmp_path)], check=True)
        try:
            assert status(api, "volumes", volume_id) == "in_use"
            snapshot_id = api.snapshot("of mounted", volume_id)
            snapshot = api.block("GET", f"snapshots/{snapshot_id}")
            assert snapshot["parent_volume"]["status"] == "in_use"
            revert = {"snapshot_id": snapshot_id}
            for method, path, body in (
                ("DELETE", f"/block/v1/zones/xx-lab-1/volumes/{volume_id}", None),
                ("POST", f"/host/v1/volumes/{volume_id}/revert", revert),
            ):
                with pytest.raises(Exception, match="resource_still_in_use") as refused:
                    api.call(method, path, body)
                assert "412" in str(refused.value)
            (tmp_path / "still").write_text("alive")
        finally:
            subprocess.run(["/bin/umount", str(tmp_path)], check=True)
        assert status(api, "volumes", volume_id) == "available"
        api.host("POST", f"volumes/{volume_id}/revert", {"snapshot_id": snapshot_id})
        api.settled("volumes", volume_id)
        api.block("DELETE", f"volumes/{volume_id}")
        expect_agreement(place)


def test_pool_without_room_refuses_before_anything_is_made_and_erases_trash_for_room(
    place: Place,
) -> None:
    with Daemon(dataclasses.replace(place, trash_keep="0s")) as daemon:
        for kind in ("volumes", "snapshots"):
            for item in daemon.api.all(kind):
                daemon.api.block("DELETE", f"{kind}/{item['id']}")
        until(lambda: not daemon.api.all("snapshots", "&include_deleted=true"))
        daemon.api.idle()
    used_percent = 12.0  # the metadata of an empty small pool stands at 10 %
    with Daemon(dataclasses.replace(place, high_water_percent=used_percent)) as daemon:
        api = daemon.api
        volume_id = api.create_volume("hog", 768 * MIB)
        keep_id = api.create_volume("keep", 8 * MIB)
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={api.device(volume_id)}", "bs=1M", "oflag=direct",
             "count=700", "status=none"],
            check=True,
        )  # fmt: skip
        before = place.lvm("lvs", "--noheadings", "-o", "lv_name", VG)
        for kind, body in (
            ("snapshots", {"volume_id": volume_id, "name": "no room"}),
            ("volumes", {"name": "no room", "from_empty": {"size": 8 * MIB}}),
        ):
            with pytest.raises(Exception, match="quotas_exceeded") as refused:
                api.block("POST", kind, body)
            assert "403" in str(refused.value)
            assert api.all(kind, "&name=no%20room") == []
        assert place.lvm("lvs", "--noheadings", "-o", "lv_name", VG) == before
        api.block("DELETE", f"volumes/{volume_id}")
        api.snapshot("room now", keep_id)
        deleted = [item["id"] for item in api.all("volumes", "&include_deleted=true")]
        assert deleted == [keep_id]
        api.idle()
        expect_agreement(place)


def test_dead_watchdog_is_replaced(place: Place) -> None:
    with Daemon(place) as daemon:
        volume_id = daemon.api.create_volume("guarded", 8 * MIB)
        found = subprocess.run(
            ["pgrep", "-P", str(daemon.pid), "-f", "front_watchdog"],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(int(found.stdout), signal.SIGKILL)
        daemon.api.snapshot("guarded all the same", volume_id)


def test_vg_that_is_extended_behind_our_back_goes_on_being_served(place: Place) -> None:
    place = dataclasses.replace(place, names_devices=False)
    more = "/dev/ubda"
    with Daemon(place) as daemon:
        by_hand = dataclasses.replace(place, run=place.run / "hand")
        (by_hand.run / "lvm").mkdir(parents=True)
        (by_hand.run / "lvm" / "lvm.conf").write_text(
            'devices { use_devicesfile = 0 filter = [ "a|/dev/ubd|", "r|.*|" ] scan_lvs = 0 }\n'
            "activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }\n"
            "backup { backup = 0 archive = 0 }\n"
        )
        by_hand.lvm("vgextend", VG, more)
        volume_id = daemon.api.create_volume("after the extension", 8 * MIB)
        daemon.api.snapshot("too", volume_id)
        by_hand.lvm("vgreduce", VG, more)
        by_hand.lvm("pvremove", "--yes", more)
        daemon.api.idle()
        expect_agreement(place)


def test_table_that_a_crash_left_loaded_never_comes_to_life(place: Place) -> None:
    def dmsetup(*argv: str) -> str:
        done = subprocess.run(["/sbin/dmsetup", *argv], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with Daemon(place) as daemon:
        mine, other = (daemon.api.create_volume(name, 8 * MIB) for name in ("mine", "other"))
        stamps.stamp(daemon.api.device(mine), 1)
        stamps.stamp(daemon.api.device(other), 2)
        daemon.kill()
    dmsetup("suspend", f"blockd-{mine}")
    dmsetup("load", f"blockd-{mine}", "--table", dmsetup("table", f"blockd-{other}"))
    with Daemon(place) as daemon:
        assert not is_suspended(mine)
        stamps.expect(daemon.api.device(mine), 1)
        daemon.api.snapshot("suspends and resumes", mine)
        stamps.expect(daemon.api.device(mine), 1)
        expect_agreement(place)
