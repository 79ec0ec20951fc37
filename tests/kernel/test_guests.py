"""A real guest: QEMU under libvirtd, its disk a volume of the lab's kernel."""

from __future__ import annotations

import dataclasses
import http.client
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Api, ApiError
from tests.support.crash_daemon import Death
from tests.support.daemon import Daemon, Place
from tests.support.hypervisor import VirtualMachine
from tests.support.qemu_libvirtd import QemuLibvirtd

pytestmark = pytest.mark.kernel

MIB = 1024**2

#: In the guest: counts into a file, each number on the disk before the next.
WRITER = """
number=0
while [ ! -e /tmp/stop ]; do
    number=$((number + 1)); echo $number >/mnt/new; mv /mnt/new /mnt/counter; sync
done
"""


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


@pytest.fixture
def here(place: Place, libvirtd: QemuLibvirtd) -> Place:
    """The place, with that libvirtd."""
    return dataclasses.replace(place, libvirt_uri=libvirtd.uri)


@contextmanager
def timed(step: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{step}: {time.monotonic() - began:.2f} s", flush=True)


def until(what: Callable[[], object], timeout_s: float = 60) -> float:
    """Wait until it is true; how many seconds it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, "did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def volume(api: Api, volume_id: str) -> Any:
    return api.host("GET", f"volumes/{volume_id}")


def attach(api: Api, volume_id: str, **body: str) -> Any:
    return api.host("POST", f"volumes/{volume_id}/attach", {"domain": "guest", **body})


def detach(api: Api, volume_id: str) -> Any:
    return api.host("POST", f"volumes/{volume_id}/detach", {})


def snapshot(api: Api, volume_id: str, quiesce: str) -> Any:
    """Taken, and what `/host/v1` says of it."""
    made = api.block("POST", "snapshots", {"volume_id": volume_id, "quiesce": quiesce})
    until(lambda: api.host("GET", f"snapshots/{made['id']}")["status"] != "creating")
    return api.host("GET", f"snapshots/{made['id']}")


@contextmanager
def counting(machine: VirtualMachine) -> Iterator[None]:
    """The guest writes for the length of the block."""
    machine.shell("rm -f /tmp/stop")
    pid = machine.start("/bin/sh", "-ec", WRITER)
    try:
        until(lambda: machine.shell("cat /mnt/counter 2>/dev/null || echo 0").strip() > "0")
        yield
    finally:
        machine.shell("touch /tmp/stop")
        machine.wait(pid, "the writer")


def counter_in(path: str, folder: Path) -> int:
    """What the guest had counted, as the host reads it."""
    subprocess.run(["/bin/mount", "-o", "ro", path, str(folder)], check=True)
    try:
        return int((folder / "counter").read_text())
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


def is_clean(path: str) -> bool:
    """Whether the ext4 there had nothing left to write."""
    told = subprocess.run(
        ["/sbin/dumpe2fs", "-h", path], check=True, capture_output=True, text=True
    ).stdout
    return "needs_recovery" not in next(
        line for line in told.splitlines() if line.startswith("Filesystem features")
    )


def test_life_of_a_guests_disk(here: Place, machine: VirtualMachine, tmp_path: Path) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        id_ = api.create_volume("data", 64 * MIB)

        with timed("attach"):
            seen = attach(api, id_)
        (reference,) = seen["references"]
        assert (reference["status"], reference["type"]) == ("attached", "exclusive")
        assert reference["product_resource_id"] == machine.domain.UUIDString()
        assert (seen["status"], seen["last_detached_at"]) == ("in_use", None)
        disk = machine.disk(id_)
        assert machine.size_bytes(disk) == 64 * MIB
        assert "total_iops_sec>5000<" in machine.domain.XMLDesc()
        for verb, path in (("DELETE", f"volumes/{id_}"),):
            with pytest.raises(ApiError) as refused:
                api.block(verb, path)
            assert refused.value.status == 412

        machine.shell(f"mkfs.ext4 -q -F {disk} && mount -t ext4 {disk} /mnt")
        with counting(machine):
            with timed("quiet snapshot"):
                quiet = snapshot(api, id_, "require")
            before = int(machine.shell("cat /mnt/counter"))
            loud = snapshot(api, id_, "none")
        print(f"frozen for {quiet['frozen_ms']} ms, the guest had counted to {before}")
        assert (quiet["status"], quiet["consistency"]) == ("available", "filesystem")
        assert (loud["consistency"], loud["frozen_ms"]) == ("crash", None)
        copies = [api.device(api.clone(one["id"], one["id"])) for one in (quiet, loud)]
        assert [is_clean(path) for path in copies] == [True, False]
        counted = counter_in(copies[0], tmp_path)
        assert 0 < counted <= before

        with timed("grow"):
            api.block("PATCH", f"volumes/{id_}", {"size": 96 * MIB})
            machine.await_size(disk, 96 * MIB)
        with timed("other performance"):
            api.idle()
            api.block("PATCH", f"volumes/{id_}", {"perf_iops": 15000})
            until(lambda: "total_iops_sec>15000<" in machine.domain.XMLDesc())

        machine.shell("umount /mnt")
        with timed("detach"):
            seen = detach(api, id_)
        assert (seen["status"], seen["references"]) == ("available", [])
        assert seen["last_detached_at"] is not None
        assert machine.shell("ls /sys/block").split() == []
        assert str(api.device(id_)) not in machine.domain.XMLDesc(2)  # VIR_DOMAIN_XML_INACTIVE

        api.host("POST", f"volumes/{id_}/revert", {"snapshot_id": quiet["id"]})
        api.idle()
        attach(api, id_, target="sdb")
        disk = machine.disk(id_)
        assert disk.startswith("/dev/sd")
        machine.shell(f"mount -t ext4 {disk} /mnt")
        assert int(machine.shell("cat /mnt/counter")) == counted
        machine.shell("umount /mnt")
        detach(api, id_)


def test_guest_frozen_by_a_daemon_that_is_killed_is_thawed(
    here: Place, machine: VirtualMachine
) -> None:
    with Daemon(here) as daemon:
        id_ = daemon.api.create_volume("data", 32 * MIB)
        attach(daemon.api, id_)
        machine.shell(f"mkfs.ext4 -q -F {machine.disk(id_)} && mount {machine.disk(id_)} /mnt")
    with Daemon(here, Death(at=0, event="before lvm lvcreate")) as daemon:
        until(lambda: volume(daemon.api, id_)["references"])
        daemon.arm()
        made = daemon.api.block("POST", "snapshots", {"volume_id": id_, "quiesce": "require"})
        daemon.ended()
        status = machine.agent("guest-fsfreeze-status")
        took_s = until(lambda: machine.agent("guest-fsfreeze-status") == "thawed")
        print(f"{status} when the daemon was dead; thawed {took_s:.2f} s later, by the watchdog")
    with Daemon(here) as daemon:
        until(lambda: daemon.api.host("GET", f"snapshots/{made['id']}")["status"] != "creating")
        seen = daemon.api.host("GET", f"snapshots/{made['id']}")
        assert (seen["status"], seen["consistency"]) == ("available", "filesystem")
        assert machine.agent("guest-fsfreeze-status") == "thawed"
        machine.shell("umount /mnt")
        detach(daemon.api, id_)


def test_disk_attached_by_hand_and_libvirtd_killed(
    here: Place, machine: VirtualMachine, libvirtd: QemuLibvirtd
) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        id_ = api.create_volume("data", 32 * MIB)
        by_hand = f"<disk type='block'><source dev='{api.device(id_)}'/><target dev='vdx'/></disk>"
        machine.domain.attachDeviceFlags(by_hand, 1)  # VIR_DOMAIN_AFFECT_LIVE
        took_s = until(lambda: volume(api, id_)["references"])
        print(f"attached by hand, seen after {took_s:.2f} s")
        assert took_s < 1

        libvirtd.kill()
        until(lambda: any("libvirt" in line for line in api.host("GET", "health")["problems"]))
        assert volume(api, id_)["status"] == "in_use"
        libvirtd.start()
        took_s = until(lambda: not api.host("GET", "health")["problems"])
        print(f"connected again {took_s:.2f} s after libvirtd was back")
        machine.reconnect()
        assert len(volume(api, id_)["references"]) == 1

        detach(api, id_)
        assert volume(api, id_)["status"] == "available"


def test_quiet_snapshot_right_after_libvirtd_came_back(
    here: Place, machine: VirtualMachine, libvirtd: QemuLibvirtd
) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        id_ = api.create_volume("data", 32 * MIB)
        attach(api, id_)
        machine.shell(f"mkfs.ext4 -q -F {machine.disk(id_)} && mount {machine.disk(id_)} /mnt")
        for _ in range(3):
            libvirtd.kill()
            until(lambda: any("libvirt" in line for line in api.host("GET", "health")["problems"]))
            libvirtd.start()
            with timed("quiet snapshot after a restart of libvirtd"):
                quiet = snapshot(api, id_, "require")
            assert (quiet["error"], quiet["consistency"]) == (None, "filesystem")
        machine.reconnect()
        machine.shell("umount /mnt")
        detach(api, id_)


def test_detachment_cut_short_goes_on_when_libvirtd_is_back(
    here: Place, machine: VirtualMachine, libvirtd: QemuLibvirtd
) -> None:
    with Daemon(here, Death(at=0, event="after commit volume detaching")) as daemon:
        id_ = daemon.api.create_volume("data", 32 * MIB)
        attach(daemon.api, id_)
        machine.disk(id_)
        daemon.arm()
        with pytest.raises((OSError, http.client.HTTPException)):
            detach(daemon.api, id_)
        daemon.ended()
    libvirtd.kill()
    with Daemon(here) as daemon:
        api = daemon.api
        until(
            lambda: any("; tried again" in line for line in api.host("GET", "health")["problems"])
        )
        (reference,) = volume(api, id_)["references"]
        assert reference["status"] == "detaching"
        libvirtd.start()
        took_s = until(lambda: not volume(api, id_)["references"])
        print(f"detached {took_s:.2f} s after libvirtd was back")
        assert volume(api, id_)["status"] == "available"
    machine.reconnect()
    assert machine.shell("ls /sys/block").split() == []
