"""A thin device in LVM's way: the wedge that a power cut leaves, and devices that nobody knows.

Each test first sees LVM by itself fail, or show what it must not.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockd.storage.thin_collision import LAST_ID
from tests.kernel.test_trouble import MIB, until
from tests.support import stamps, thin_kernel
from tests.support.agreement import expect_agreement
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place
from tests.support.vg_lock import vg_lock_held

pytestmark = pytest.mark.kernel

SIZE = 8 * MIB
OLD, NEW = 1, 2


def prepare(api: Api) -> tuple[str, str]:
    """A volume of generation NEW with a snapshot of OLD."""
    volume_id = api.create_volume("v", SIZE)
    stamps.stamp(api.device(volume_id), OLD)
    snapshot_id = api.snapshot("s", volume_id)
    stamps.stamp(api.device(volume_id), NEW)
    return volume_id, snapshot_id


def newest(place: Place) -> str:
    """The LV that LVM made last."""
    ids = thin_kernel.lvm_ids(place)
    return max(ids, key=lambda name: ids[name])


def lvcreate_waits() -> bool:
    """Whether a creation of the daemon's is under way."""
    found = subprocess.run(["pgrep", "-f", "/lvm lvcreate"], capture_output=True, check=False)
    return found.returncode == 0


def expect_wedge(place: Place, lv: str) -> None:
    """LVM cannot get out of it."""
    with pytest.raises(AssertionError, match="already contain thin device"):
        place.lvm("lvremove", "--yes", f"{VG}/{lv}")


def expect_content(api: Api, snapshot_id: str, generation: int) -> None:
    """What a snapshot holds."""
    clone_id = api.clone("look", snapshot_id)
    stamps.expect(api.device(clone_id), generation)
    api.block("DELETE", f"volumes/{clone_id}")


def expect_no_stray(place: Place) -> None:
    """The kernel has the thin devices that LVM knows, and no other."""
    assert thin_kernel.thin_ids() == set(thin_kernel.lvm_ids(place).values())


@contextmanager
def rescued(kept_id: int) -> Iterator[Path]:
    """A thin device that was set aside, as a person would look at it; removed in the end."""
    table = f"0 {SIZE // 512} thin /dev/mapper/{thin_kernel.POOL} {kept_id}"
    thin_kernel.dmsetup("create", "rescue", "--readonly", "--table", table)
    try:
        yield Path("/dev/mapper/rescue")
    finally:
        thin_kernel.dmsetup("remove", "rescue")
    thin_kernel.tell_pool(f"delete {kept_id}")


@pytest.mark.parametrize("what", ["snapshot", "clone", "volume"])
def test_creation_cut_short_by_a_power_cut_is_undone_at_start_and_done_anew(
    place: Place, what: str
) -> None:
    with Daemon(place) as daemon:
        volume_id, snapshot_id = prepare(daemon.api)
        with vg_lock_held(VG):
            if what == "snapshot":
                daemon.api.block("POST", "snapshots", {"volume_id": volume_id, "name": "made"})
            else:
                source = {"snapshot_id": snapshot_id, "size": SIZE}
                from_ = (
                    {"from_snapshot": source} if what == "clone" else {"from_empty": {"size": SIZE}}
                )
                daemon.api.block("POST", "volumes", {"name": "made", **from_})
            until(lvcreate_waits)
            daemon.kill()
        until(lambda: not lvcreate_waits())
    made = newest(place)
    thin_kernel.cut_short(place, made)
    if what != "volume":  # LVM takes a thin device of no origin for its own, and goes on
        expect_wedge(place, made)
    with Daemon(place) as daemon:
        api = daemon.api
        api.idle()
        assert f'"lv": "{made}"' in daemon.log.read_text()
        kind = "snapshots" if what == "snapshot" else "volumes"
        (row,) = [item for item in api.all(kind) if item["name"] == "made"]
        assert row["status"] == "available"
        if what == "snapshot":
            expect_content(api, row["id"], NEW)
        else:
            stamps.expect(api.device(row["id"]), OLD if what == "clone" else 0)
        stamps.expect(api.device(volume_id), NEW)
        expect_content(api, snapshot_id, OLD)
        expect_agreement(place)
        expect_no_stray(place)
        api.block("DELETE", f"{kind}/{row['id']}")


def test_wedge_that_a_running_daemon_meets_is_healed_whatever_it_was_about_to_do(
    place: Place,
) -> None:
    with Daemon(dataclasses.replace(place, trash_keep="0s")) as daemon:
        api = daemon.api
        volume_id, snapshot_id = prepare(api)
        clone_id = api.clone("c", snapshot_id)
        origin = f"{VG}/blockd-{volume_id}"
        (tag,) = place.lvm("lvs", "--noheadings", "-o", "lv_tags", origin).split()

        def wedge(name: str, *tags: str) -> None:
            place.lvm("lvcreate", "--yes", "-s", "-kn", "-an", *tags, "-n", name, origin)
            thin_kernel.cut_short(place, name)
            expect_wedge(place, name)

        wedge("alien0")
        made_id = api.snapshot("made", volume_id)
        wedge("alien1")
        api.clone("made", snapshot_id)
        wedge("alien2")
        api.create_volume("made", SIZE)
        wedge("alien3")
        api.block("PATCH", f"volumes/{clone_id}", {"size": 2 * SIZE})
        api.settled("volumes", clone_id)
        wedge("alien4")
        api.host("POST", f"volumes/{volume_id}/revert", {"snapshot_id": snapshot_id})
        api.settled("volumes", volume_id)
        # As of an LVM command of ours that was ended by somebody else.
        wedge("blockd-aaaaaaaa-0000-4000-8000-000000000000", "--addtag", tag)
        api.block("DELETE", f"snapshots/{made_id}")
        until(lambda: made_id not in str(api.all("snapshots", "&include_deleted=true")))
        api.idle()

        for front_id in (volume_id, clone_id):
            stamps.expect(api.device(front_id), OLD, 0, SIZE)
        expect_content(api, snapshot_id, OLD)
        api.idle()
        expect_agreement(place)
        expect_no_stray(place)
        aliens = [name for name in thin_kernel.lvm_ids(place) if name.startswith("alien")]
        assert len(aliens) == 5, "LVs of others are touched no more than LVM must"
        place.lvm("lvremove", "--yes", *(f"{VG}/{name}" for name in aliens))


def test_thin_device_unknown_to_lvm_is_shown_by_no_new_volume_and_its_data_is_kept(
    place: Place,
) -> None:
    with Daemon(place) as daemon:
        api = daemon.api
        volume_id, snapshot_id = prepare(api)
        origin_id = thin_kernel.lvm_ids(place)[f"blockd-{volume_id}"]

        def stray() -> int:
            """Under the number that LVM takes next, with the volume's bytes."""
            next_id = max(thin_kernel.lvm_ids(place).values()) + 1
            thin_kernel.tell_pool(f"create_snap {next_id} {origin_id}")
            return next_id

        with pytest.raises(AssertionError, match="File exists"):
            thin_kernel.tell_pool(f"create_thin {stray()}")
        # LVM passes over the kernel's refusal, and its new LV shows the old data.
        place.lvm("lvcreate", "-V", f"{SIZE}b", "--thinpool", "pool", "-n", "leak", VG)
        stamps.expect(Path(f"/dev/mapper/{VG}-leak"), NEW)
        place.lvm("lvremove", "--yes", f"{VG}/leak")

        stray()
        stamps.expect(api.device(api.create_volume("clean", SIZE)), 0)
        with rescued(LAST_ID) as device:
            stamps.expect(device, NEW)
        stray()
        expect_content(api, api.snapshot("clean", volume_id), NEW)
        with rescued(LAST_ID) as device:
            stamps.expect(device, NEW)
        stray()
        stamps.expect(api.device(api.clone("clean", snapshot_id)), OLD)
        with rescued(LAST_ID) as device:
            stamps.expect(device, NEW)
        api.idle()
        expect_agreement(place)
        expect_no_stray(place)


def test_removal_behind_a_message_that_the_kernel_has_heard_leaves_no_device(place: Place) -> None:
    with Daemon(place) as daemon:
        volume_id, snapshot_id = prepare(daemon.api)
        daemon.api.block("DELETE", f"snapshots/{snapshot_id}")
        daemon.api.idle()
        other_id = daemon.api.create_volume("other", SIZE)
    place.lvm("lvcreate", "-y", "-V", "8m", "--thinpool", "pool", "-an", "-n", "stray", VG)
    thin_id = thin_kernel.lvm_ids(place)["stray"]
    thin_kernel.leave_heard_message(place)
    place.lvm("lvremove", "--yes", f"{VG}/stray")
    assert thin_id in thin_kernel.thin_ids()  # LVM by itself loses it
    thin_kernel.tell_pool(f"delete {thin_id}")

    thin_kernel.leave_heard_message(place)
    lv, other_lv = f"blockd-{volume_id}", f"blockd-{other_id}"
    with Daemon(dataclasses.replace(place, trash_keep="0s")) as daemon:
        daemon.api.block("DELETE", f"volumes/{volume_id}")
        until(lambda: lv not in thin_kernel.lvm_ids(place))
        until(lambda: "LVM had lost a removal" in daemon.log.read_text())
        expect_no_stray(place)
        daemon.api.block("DELETE", f"volumes/{other_id}")
        until(lambda: other_lv not in thin_kernel.lvm_ids(place))
        expect_agreement(place)
    expect_no_stray(place)
