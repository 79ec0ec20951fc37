"""Snapshots that a real guest reads, of both classes: QEMU under libvirtd, in the lab's kernel."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from blockd.storage.lvm_config import write_lvm_config
from tests.contract.lab_drivers import THICK_DISK
from tests.kernel.test_guests import timed, until
from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api, ApiError
from tests.support.crash_daemon import Death
from tests.support.daemon import THICK_VG, VG, Daemon, Place
from tests.support.examination import found
from tests.support.hypervisor import CommandFailed, VirtualMachine
from tests.support.qemu_libvirtd import QemuLibvirtd

pytestmark = pytest.mark.kernel

MIB = 1024**2
SIZE = 8 * MIB + 512  # off the extent grid
CLASSES = {"sbs": VG, "bssd": THICK_VG}
#: So small that a store's room is used up in seconds.
THICK_BYTES = 320 * MIB


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuLibvirtd]:
    with QemuLibvirtd(tmp_path_factory.mktemp("libvirtd")) as server:
        yield server


@pytest.fixture(scope="module")
def machine(
    libvirtd: QemuLibvirtd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VirtualMachine]:
    with timed("boot"), VirtualMachine(libvirtd, tmp_path_factory.mktemp("machine")) as booted:
        yield booted


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, libvirtd: QemuLibvirtd) -> Iterator[Place]:
    """A place with a thin and a thick class, and that libvirtd."""
    if not THICK_DISK.is_block_device():
        pytest.skip(f"no {THICK_DISK}: run inside scripts/lab with three disks")
    root = tmp_path_factory.mktemp("place")
    (root / "run").mkdir()
    thin = Place(state=root, run=root / "run", trash_keep="0s", snapshot_size_least="32MiB")
    thin.make_pool()
    place = replace(thin, thick_disk=THICK_DISK, libvirt_uri=libvirtd.uri)
    disks = [str(place.disk), str(THICK_DISK)]
    write_lvm_config(place.run / "lvm", disks, udev=False, reserved_memory_kib=512)
    place.lvm(
        *("pvcreate", "--yes", "--metadatasize", "64m"),
        *("--setphysicalvolumesize", f"{THICK_BYTES}b", str(THICK_DISK)),
    )
    place.lvm("vgcreate", THICK_VG, str(THICK_DISK))
    yield place
    place.remove_vg()
    place.lvm("vgremove", "--force", "--force", "--yes", THICK_VG)
    place.lvm("pvremove", "--yes", str(THICK_DISK))


def stamped(api: Api, class_name: str) -> tuple[str, str, str]:
    """A volume, its snapshot, and the digest of what that holds: the volume is written over."""
    body = {"name": "v", "from_empty": {"size": SIZE}, "class": class_name}
    volume_id = api.settled("volumes", api.block("POST", "volumes", body)["id"])
    path = api.device(volume_id)
    stamps.stamp(path, 1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    snapshot_id = api.snapshot("s", volume_id)
    stamps.stamp(path, 2)
    return volume_id, snapshot_id, digest


def seen(api: Api, snapshot_id: str) -> Any:
    return api.host("GET", f"snapshots/{snapshot_id}")


def attach(api: Api, snapshot_id: str, **body: str) -> Any:
    return api.host("POST", f"snapshots/{snapshot_id}/attach", {"domain": "guest", **body})


def detach(api: Api, snapshot_id: str) -> Any:
    return api.host("POST", f"snapshots/{snapshot_id}/detach", {})


def read(machine: VirtualMachine, disk: str) -> str:
    """The digest of what the guest reads of its disk, and not of its cache."""
    told = machine.shell(f"echo 3 >/proc/sys/vm/drop_caches; sha256sum {disk}")
    return told.split()[0]


def erase(api: Api, volume_id: str, snapshot_id: str) -> None:
    """Both are deleted, and gone."""
    api.block("DELETE", f"snapshots/{snapshot_id}")
    api.block("DELETE", f"volumes/{volume_id}")

    def left() -> set[str]:
        kinds = ("volumes", "snapshots")
        return {row["id"] for kind in kinds for row in api.all(kind, "&include_deleted=true")}

    until(lambda: not left() & {volume_id, snapshot_id})
    api.idle()


@pytest.mark.parametrize("class_name", CLASSES)
def test_guest_reads_a_snapshot_and_cannot_write_to_it(
    here: Place, machine: VirtualMachine, class_name: str
) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        volume_id, snapshot_id, digest = stamped(api, class_name)
        with timed(f"attach, {class_name}"):
            answer = attach(api, snapshot_id)
        (reference,) = answer["references"]
        assert (answer["status"], reference["status"]) == ("in_use", "attached")
        assert (reference["type"], reference["product_resource_type"]) == ("link", "libvirt_domain")
        assert reference["product_resource_id"] == machine.domain.UUIDString()
        assert answer["parent_volume"]["status"] == "available"
        assert "<readonly/>" in machine.domain.XMLDesc()

        disk = machine.disk(snapshot_id)
        assert machine.size_bytes(disk) == SIZE
        assert read(machine, disk) == digest
        assert machine.shell(f"cat /sys/block/{Path(disk).name}/ro").strip() == "1"
        with pytest.raises(CommandFailed):
            machine.shell(f"dd if=/dev/zero of={disk} bs=4096 count=1 conv=fsync")
        with pytest.raises(PermissionError):
            write(Path("/dev/blockd") / snapshot_id)
        assert read(machine, disk) == digest

        with pytest.raises(ApiError) as refused:
            api.block("DELETE", f"snapshots/{snapshot_id}")
        assert (refused.value.status, refused.value.body["precondition"]) == (
            412,
            "protected_resource",
        )
        with pytest.raises(ApiError, match="already"):
            attach(api, snapshot_id)
        body = {"volume_id": volume_id, "quiesce": "require"}
        with pytest.raises(ApiError, match="no running guest has volume"):
            api.block("POST", "snapshots", body)
        assert found(api) == {}, "a healthy host"

        daemon.kill()
        assert read(machine, disk) == digest
    with Daemon(here) as daemon:
        api = daemon.api
        assert seen(api, snapshot_id)["references"] == [reference]
        assert read(machine, disk) == digest
        assert found(api) == {}, "a healthy host"

        with timed(f"detach, {class_name}"):
            answer = detach(api, snapshot_id)
        assert (answer["status"], answer["references"]) == ("available", [])
        assert machine.shell("ls /sys/block").split() == []
        assert not (Path("/dev/blockd") / snapshot_id).exists()
        assert found(api) == {}, "a healthy host"
        erase(api, volume_id, snapshot_id)
    expect_agreement(here)


def write(path: Path) -> None:
    with path.open("r+b", buffering=0) as device:
        device.write(b"\0" * 4096)
        os.fsync(device.fileno())


def test_guest_mounts_the_snapshot_of_its_own_volume(here: Place, machine: VirtualMachine) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        volume_id = api.create_volume("data", 32 * MIB)
        api.host("POST", f"volumes/{volume_id}/attach", {"domain": "guest"})
        disk = machine.disk(volume_id)
        machine.shell(f"mkfs.ext4 -q -F {disk} && mount -t ext4 {disk} /mnt && echo old >/mnt/file")
        body = {"volume_id": volume_id, "quiesce": "require"}
        snapshot_id = api.settled("snapshots", api.block("POST", "snapshots", body)["id"])
        machine.shell("echo new >/mnt/file && sync")

        attach(api, snapshot_id)
        picture = machine.disk(snapshot_id)
        machine.shell(f"mkdir -p /tmp/old && mount -t ext4 -o ro {picture} /tmp/old")
        assert machine.shell("cat /tmp/old/file /mnt/file").split() == ["old", "new"]
        machine.shell("umount /tmp/old /mnt")
        detach(api, snapshot_id)
        api.host("POST", f"volumes/{volume_id}/detach", {})
        erase(api, volume_id, snapshot_id)


def test_snapshots_of_a_guest_are_there_after_a_reboot_before_it_starts(
    here: Place, machine: VirtualMachine
) -> None:
    with Daemon(here) as daemon:
        made = {name: stamped(daemon.api, name) for name in CLASSES}
        for _, snapshot_id, _ in made.values():
            attach(daemon.api, snapshot_id)
    machine.domain.destroy()
    forget_devices(here)
    with Daemon(here) as daemon:  # ready, and libvirt starts its guests after it
        api = daemon.api
        for volume_id, snapshot_id, digest in made.values():
            path = Path("/dev/blockd") / snapshot_id
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
            stamps.expect(api.device(volume_id), 2)
        with timed("boot"):
            machine.boot()
        for volume_id, snapshot_id, digest in made.values():
            assert read(machine, machine.disk(snapshot_id)) == digest
            detach(api, snapshot_id)
            erase(api, volume_id, snapshot_id)
    expect_agreement(here)


def forget_devices(place: Place) -> None:
    """As a reboot leaves it: nothing is active, and no front is there."""
    for link in Path("/dev/blockd").iterdir():
        subprocess.run(["/sbin/dmsetup", "remove", f"blockd-{link.name}"], check=True)
        link.unlink()
    for vg in CLASSES.values():
        place.lvm("vgchange", "-an", vg)


ATTACHING = ("before lvm lvchange", "after dm create", "after link make")
DETACHING = ("before link remove", "before dm remove", "before lvm lvchange")


@pytest.mark.parametrize("event", [f"attach: {event}" for event in ATTACHING])
def test_daemon_killed_while_it_attaches_leaves_nothing(
    here: Place, machine: VirtualMachine, event: str
) -> None:
    with Daemon(here, Death(at=0, event=event.removeprefix("attach: "))) as daemon:
        volume_id, snapshot_id, _ = stamped(daemon.api, "sbs")
        daemon.arm()
        with pytest.raises((OSError, http.client.HTTPException)):
            attach(daemon.api, snapshot_id)
        daemon.ended()
    expect_detached(here, machine, volume_id, snapshot_id)


@pytest.mark.parametrize("event", [f"detach: {event}" for event in DETACHING])
def test_daemon_killed_while_it_detaches_ends_detached(
    here: Place, machine: VirtualMachine, event: str
) -> None:
    with Daemon(here, Death(at=0, event=event.removeprefix("detach: "))) as daemon:
        volume_id, snapshot_id, _ = stamped(daemon.api, "sbs")
        attach(daemon.api, snapshot_id)
        daemon.arm()
        with pytest.raises((OSError, http.client.HTTPException)):
            detach(daemon.api, snapshot_id)
        daemon.ended()
    expect_detached(here, machine, volume_id, snapshot_id)


def expect_detached(
    place: Place, machine: VirtualMachine, volume_id: str, snapshot_id: str
) -> None:
    """After a start no guest has it, and nothing is left of its device."""
    with Daemon(place) as daemon:
        api = daemon.api
        until(lambda: not seen(api, snapshot_id)["references"])
        until(lambda: not (Path("/dev/blockd") / snapshot_id).exists())
        until(lambda: not found(api))
        expect_agreement(place)
        assert machine.shell("ls /sys/block").split() == []
        erase(api, volume_id, snapshot_id)


def test_snapshot_detached_by_hand_is_put_away(here: Place, machine: VirtualMachine) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        volume_id, snapshot_id, _ = stamped(api, "sbs")
        attach(api, snapshot_id, target="sdb")
        path = Path("/dev/blockd") / snapshot_id
        description = machine.domain.XMLDesc()
        begin = description.index("<disk "), description.index("</disk>") + len("</disk>")
        # The definition first: of its change alone libvirt tells no event.
        for flags in (libvirt.VIR_DOMAIN_AFFECT_CONFIG, libvirt.VIR_DOMAIN_AFFECT_LIVE):
            machine.domain.detachDeviceFlags(description[slice(*begin)], flags)
        until(lambda: not seen(api, snapshot_id)["references"])
        took_s = until(lambda: not path.exists())
        print(f"device gone {took_s:.2f} s after it was seen")
        erase(api, volume_id, snapshot_id)
    expect_agreement(here)


def test_attached_snapshot_whose_store_overflows_gives_its_guest_errors_and_no_other_bytes(
    here: Place, machine: VirtualMachine
) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        body = {"name": "v", "from_empty": {"size": 64 * MIB}, "class": "bssd"}
        volume_id = api.settled("volumes", api.block("POST", "volumes", body)["id"])
        stamps.stamp(api.device(volume_id), 1)
        snapshot_id = api.snapshot("s", volume_id)
        attach(api, snapshot_id)
        disk = machine.disk(snapshot_id)
        read(machine, disk)
        pool = next(one for one in api.host("GET", "pools")["pools"] if one["class"] == "bssd")
        body = {"name": "filler", "from_empty": {"size": pool["free"]}, "class": "bssd"}
        filler = api.settled("volumes", api.block("POST", "volumes", body)["id"])
        stamps.stamp(api.device(volume_id), 2)
        until(lambda: seen(api, snapshot_id)["status"] == "error")
        with pytest.raises(CommandFailed, match="Input/output error"):
            read(machine, disk)
        stamps.expect(api.device(volume_id), 2)
        until(lambda: any(snapshot_id in line for line in api.host("GET", "health")["problems"]))
        with pytest.raises(ApiError) as refused:
            api.block("DELETE", f"snapshots/{snapshot_id}")
        assert refused.value.status == 412
        detach(api, snapshot_id)
        until(lambda: not api.host("GET", "health")["problems"])
        api.block("DELETE", f"volumes/{filler}")
        erase(api, volume_id, snapshot_id)
    expect_agreement(here)
