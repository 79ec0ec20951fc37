"""What can be wrong with devices, made on purpose on the real kernel: found, and put right.

The other kinds of findings are in tests/service/test_doctor.py.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.storage.thin_collision import LAST_ID
from tests.kernel.test_thin_collision import SIZE, newest
from tests.kernel.test_trouble import until
from tests.support import stamps, thin_kernel
from tests.support.agreement import expect_agreement
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place
from tests.support.examination import device_of, fix, found
from tests.support.thin_kernel import dmsetup, tell_pool

pytestmark = pytest.mark.kernel


def blockctl(place: Place, *argv: str) -> subprocess.CompletedProcess[str]:
    """As a person would."""
    return subprocess.run(
        [Path(sys.executable).with_name("blockctl"), "--socket", f"{place.run}/blockd.sock", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def stamped(api: Api) -> tuple[str, str]:
    """A volume of generation 1, and its snapshot."""
    volume_id = api.create_volume("v", SIZE)
    stamps.stamp(api.device(volume_id), 1)
    return volume_id, api.snapshot("s", volume_id)


def test_each_thing_wrong_with_thin_devices_is_found_and_put_right(place: Place) -> None:
    with Daemon(place) as daemon:
        api = daemon.api
        volume_id, snapshot_id = stamped(api)
        disk, picture = f"blockd-{volume_id}", f"blockd-{snapshot_id}"
        assert found(api) == {}, "a healthy host"
        link = Path("/dev/blockd") / volume_id

        def hold_metadata() -> None:
            tell_pool("reserve_metadata_snap")

        def forget_link() -> None:
            link.unlink()

        def misdirect_link() -> None:
            link.unlink()
            link.symlink_to("../dm-0")

        def leave_link() -> None:
            (link.parent / "gone.new").symlink_to("../dm-0")

        def leave_active() -> None:
            place.lvm("lvchange", "-ay", "-K", f"{VG}/{picture}")

        ailments: list[tuple[str, Callable[[], object]]] = [
            ("device-suspended", lambda: dmsetup("suspend", "--noflush", f"blockd-{volume_id}")),
            ("device-suspended", lambda: dmsetup("suspend", "--noflush", device_of(disk))),
            ("device-suspended", lambda: dmsetup("suspend", "--noflush", thin_kernel.POOL)),
            ("device-suspended", lambda: dmsetup("suspend", "--noflush", f"{VG}-pool_tdata")),
            ("link-wrong", forget_link),
            ("link-wrong", misdirect_link),
            ("link-wrong", leave_link),
            ("metadata-snapshot-held", hold_metadata),
            ("disk-active", leave_active),
        ]
        for kind, make in ailments:
            make()
            findings = found(api)
            assert set(findings) == {kind}
            assert findings[kind]["fix"]
            fix(api)
            stamps.expect(api.device(volume_id), 1)
        api.idle()
        expect_agreement(place)
        api.snapshot("all is well", volume_id)


def test_thin_devices_that_lvm_and_the_kernel_do_not_agree_upon(place: Place) -> None:
    with Daemon(place) as daemon:
        api = daemon.api
        volume_id, snapshot_id = stamped(api)
        ids = thin_kernel.lvm_ids(place)

        unknown = max(ids.values()) + 7
        tell_pool(f"create_snap {unknown} {ids[f'blockd-{volume_id}']}")
        assert set(found(api)) == {"thin-device-unknown"}
        after = api.host("POST", "doctor/fix", {})
        (kept,) = after["findings"]
        assert (kept["kind"], kept["fix"]) == ("thin-device-kept", None)
        assert thin_kernel.thin_ids() - set(ids.values()) == {LAST_ID}
        command = kept["advice"].rpartition("dmsetup ")[2].replace("'", "").split()
        dmsetup(*command[:3], " ".join(command[3:]))
        assert found(api) == {}

        tell_pool(f"delete {ids[f'blockd-{snapshot_id}']}")
        (missing,) = found(api).values()
        assert (missing["kind"], missing["fix"]) == ("thin-device-missing", None)
        assert snapshot_id in missing["subject"]

        place.lvm(
            *("lvcreate", "--yes", "-s", "-pr", "-kn", "-an", "--addtag", "x"),
            *("-n", "alien", f"{VG}/blockd-{volume_id}"),
        )
        thin_kernel.cut_short(place, newest(place))
        assert set(found(api)) == {"thin-device-missing", "creation-cut-short"}
    with Daemon(dataclasses.replace(place, trash_keep="0s")) as daemon:
        api = daemon.api
        assert set(found(api)) == {"thin-device-missing"}, "undone at start"
        api.block("DELETE", f"snapshots/{snapshot_id}")
        until(lambda: snapshot_id not in str(api.all("snapshots", "&include_deleted=true")))
        place.lvm("lvremove", "--yes", f"{VG}/alien")
        assert found(api) == {}
        expect_agreement(place)


def test_findings_are_in_log_and_health_after_a_start_and_in_blockctl(place: Place) -> None:
    with Daemon(place) as daemon:
        volume_id = daemon.api.create_volume("v", SIZE)
        daemon.api.idle()
    stray = Path("/dev/blockd/stray")
    stray.symlink_to("../dm-0")
    place.lvm("lvchange", "--addtag", "kept", f"{VG}/blockd-{volume_id}")
    with Daemon(dataclasses.replace(place, examines_at_start=True)) as daemon:
        until(lambda: daemon.api.host("GET", "health")["status"] == "degraded")
        assert "blockctl doctor" in daemon.api.host("GET", "health")["problems"][0]
        until(lambda: '"finding": "link-wrong:stray"' in daemon.log.read_text())
        sick = blockctl(place, "doctor")
        assert (sick.returncode, sick.stderr) == (1, "")
        assert "link-wrong:stray" in sick.stdout
        assert stray.is_symlink(), "nothing is changed without --fix"
        refused = blockctl(place, "doctor", "link-wrong:stray")
        assert refused.returncode == 2
        healed = blockctl(place, "doctor", "--fix", "link-wrong:stray")
        assert (healed.returncode, healed.stderr) == (0, "")
        assert not stray.is_symlink()
        well = blockctl(place, "doctor")
        assert (well.returncode, well.stdout) == (0, "nothing is amiss\n")
        gone = blockctl(place, "doctor", "--fix", "link-wrong:stray")
        assert gone.returncode == 3
        assert daemon.api.host("GET", "health")["problems"] == []
