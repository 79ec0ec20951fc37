"""Snapshots of several volumes at one instant, by the daemon on the real kernel, under writes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from blockd.domain.effects import SideEffects
from blockd.storage.dm import lv_device_name, open_device_mapper
from blockd.storage.lvm_config import write_lvm_config
from tests.contract.lab_drivers import THICK_DISK
from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api, ApiError
from tests.support.daemon import THICK_VG, VG, Daemon, Place
from tests.support.in_turn import WriterInTurn, instant

pytestmark = pytest.mark.kernel

MIB = 1024**2
SIZE = MIB
CLASSES = {"sbs": VG, "bssd": THICK_VG}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place with a thin and a thick class."""
    if not THICK_DISK.is_block_device():
        pytest.skip(f"no {THICK_DISK}: run inside scripts/lab with three disks")
    root = tmp_path_factory.mktemp("groups")
    (root / "run").mkdir()
    thin = Place(state=root, run=root / "run", trash_keep="0s", snapshot_size_least="8MiB")
    thin.make_pool()
    place = replace(thin, thick_disk=THICK_DISK)
    disks = [str(place.disk), str(THICK_DISK)]
    write_lvm_config(place.run / "lvm", disks, udev=False, reserved_memory_kib=512)
    place.lvm("vgcreate", "--metadatasize", "64m", THICK_VG, str(THICK_DISK))
    yield place
    place.remove_vg()
    place.lvm("vgremove", "--force", "--force", "--yes", THICK_VG)
    place.lvm("pvremove", "--yes", str(THICK_DISK))


@pytest.fixture
def daemon(place: Place) -> Iterator[Daemon]:
    with Daemon(place) as running:
        yield running
        clear(running.api)
        expect_agreement(place)


def clear(api: Api) -> None:
    """All is deleted, and erased."""
    for kind in ("snapshots", "volumes"):
        for item in api.all(kind):
            api.block("DELETE", f"{kind}/{item['id']}")
    deadline = time.monotonic() + 60
    while any(api.all(kind, "&include_deleted=true") for kind in ("snapshots", "volumes")):
        assert time.monotonic() < deadline, "the trash is not emptied"
        time.sleep(0.1)
    api.idle()


def make_volumes(api: Api, classes: Sequence[str]) -> list[str]:
    ids = []
    for number, class_name in enumerate(classes):
        body = {"name": f"v{number}", "from_empty": {"size": SIZE}, "class": class_name}
        ids.append(api.block("POST", "volumes", body)["id"])
    return [api.settled("volumes", volume_id) for volume_id in ids]


def writing(api: Api, volumes: Sequence[str]) -> WriterInTurn:
    return WriterInTurn([api.device(volume_id) for volume_id in volumes], SIZE)


def reaches(writer: WriterInTurn, position: int) -> None:
    deadline = time.monotonic() + 60
    while writer.position < position:
        assert time.monotonic() < deadline, "the writer does not go on"
        time.sleep(0.01)


def held(api: Api, snapshot_id: str) -> list[int]:
    """What a snapshot holds, as a clone of it shows."""
    clone_id = api.clone("look", snapshot_id)
    with stamps.opened(api.device(clone_id)) as device:
        generations = device.generations(0, SIZE)
    api.block("DELETE", f"volumes/{clone_id}")
    return generations


def take(api: Api, volumes: Sequence[str]) -> Any:
    return api.host("POST", "groups/snapshots", {"volume_ids": list(volumes), "name": "night"})


def dmsetup(*argv: str) -> None:
    subprocess.run(["/sbin/dmsetup", *argv], check=True, timeout=60)


def expect_nothing_suspended() -> None:
    with open_device_mapper(SideEffects()) as mapper:
        devices = mapper.devices("")
    assert len(devices) > 0
    assert [device.name for device in devices if device.suspended] == []


@pytest.mark.parametrize(
    "classes",
    # Groups of a single class: tests/contract/test_group.py.
    [("sbs", "bssd"), ("sbs", "bssd") * 4],
    ids=["2", "8"],
)
def test_group_under_write_load_is_one_instant(daemon: Daemon, classes: tuple[str, ...]) -> None:
    api = daemon.api
    volumes = make_volumes(api, classes)
    groups = []
    with writing(api, volumes) as writer:
        for _ in range(2):
            reaches(writer, writer.position + 100)
            before, writer.longest_s = writer.position, 0.0
            group = take(api, volumes)
            groups.append((before, group, writer.position + 1))  # one may not be counted yet
            print(
                f"{len(volumes)} volumes: suspended {group['suspended_ms']} ms, the writer waited "
                f"{writer.longest_s * 1000:.0f} ms"
            )
        reaches(writer, writer.position + 100)
    expect_nothing_suspended()
    for before, group, after in groups:
        assert {one["status"] for one in group["snapshots"]} == {"available"}
        contents = [held(api, one["id"]) for one in group["snapshots"]]
        assert before <= instant(contents) <= after


@pytest.mark.parametrize("class_name", ["sbs", "bssd"])
def test_failure_in_the_fifth_of_eight_leaves_none_and_nothing_suspended(
    daemon: Daemon, place: Place, class_name: str
) -> None:
    api, vg = daemon.api, CLASSES[class_name]
    volumes = make_volumes(api, [class_name] * 8)
    count = int(place.lvm("vgs", "--noheadings", "-o", "lv_count", vg))
    place.lvm("vgchange", "--logicalvolume", str(count + 4), vg)
    try:
        with writing(api, volumes) as writer:
            reaches(writer, writer.position + 100)
            with pytest.raises(ApiError, match="Maximum number of logical volumes") as refused:
                take(api, volumes)
            assert refused.value.status == 412
            expect_nothing_suspended()
            reaches(writer, writer.position + 100)
    finally:
        place.lvm("vgchange", "--logicalvolume", "0", vg)
    api.idle()
    assert api.all("snapshots", "&include_deleted=true") == []
    assert int(place.lvm("vgs", "--noheadings", "-o", "lv_count", vg)) == count
    expect_agreement(place)
    assert len(take(api, volumes)["snapshots"]) == 8


def test_group_that_takes_too_long_is_given_up_and_the_writer_waits_no_longer(
    place: Place,
) -> None:
    place = replace(place, max_suspend="200ms")
    with Daemon(place) as daemon:
        api = daemon.api
        volumes = make_volumes(api, ["sbs", "bssd"] * 4)
        with writing(api, volumes) as writer:
            reaches(writer, writer.position + 100)
            writer.longest_s = 0.0
            with pytest.raises(ApiError) as refused:
                take(api, volumes)
            print(f"the writer waited {writer.longest_s * 1000:.0f} ms: {refused.value}")
            assert refused.value.status == 412
            reaches(writer, writer.position + 100)
            assert writer.longest_s < 2.0
        expect_nothing_suspended()
        clear(api)
        expect_agreement(place)


@pytest.mark.parametrize(("hangs", "other"), [("sbs", "bssd"), ("bssd", "sbs")])
def test_disk_that_does_not_answer_is_left_and_the_other_class_goes_on(
    place: Place, hangs: str, other: str
) -> None:
    with Daemon(replace(place, max_suspend="2s")) as daemon:
        api = daemon.api
        hung, fine = make_volumes(api, [hangs, other])
        below = lv_device_name(CLASSES[hangs], f"blockd-{hung}")
        dmsetup("suspend", "--noflush", "--nolockfs", below)
        # Its write is in flight, so the front cannot be suspended before it has ended.
        with writing(api, [hung]) as writer:
            began = time.monotonic()
            try:
                with pytest.raises(ApiError) as refused:
                    take(api, [hung, fine])
                api.snapshot("other class", fine)
                print(f"{refused.value} after {time.monotonic() - began:.1f} s")
            finally:
                dmsetup("resume", below)
            assert refused.value.status == 412
            assert "does not answer" in str(refused.value)
            reaches(writer, writer.position + 10)
        api.idle()
        expect_nothing_suspended()
        assert len(take(api, [hung, fine])["snapshots"]) == 2
        clear(api)
        expect_agreement(place)
