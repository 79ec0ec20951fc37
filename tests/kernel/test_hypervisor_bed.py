"""The test bed of libvirt itself: what tests of attach, quiesce and growth rely on."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from tests.support.hypervisor import VirtualMachine, disk_xml
from tests.support.qemu_libvirtd import QemuLibvirtd

pytestmark = pytest.mark.kernel

SERIAL = "11111111-2222-4333-8444-555555555555"
TARGETS = {"virtio": "vda", "scsi": "sda"}
#: A dm-linear device on the lab's second disk, small enough to be read whole.
NAME, DISK = "test-bed", Path("/dev/ubdb")
DEVICE = Path("/dev/mapper") / NAME
SIZE_BYTES, GROWN_BYTES = 64 << 20, 96 << 20
REMOVED_S = 60.0


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print how long a step took."""
    began = time.monotonic()
    yield
    print(f"{step}: {time.monotonic() - began:.1f} s", flush=True)


@pytest.fixture(scope="module")
def events() -> Iterator[None]:
    """libvirt's own event loop, in a thread."""
    libvirt.virEventRegisterDefaultImpl()
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            libvirt.virEventRunDefaultImpl()

    libvirt.virEventAddTimeout(200, lambda *_: None, None)  # so that a turn ends
    thread = threading.Thread(target=turn)
    thread.start()
    yield
    ended.set()
    thread.join(10)


@pytest.fixture(scope="module")
def libvirtd(events: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuLibvirtd]:
    if not DISK.is_block_device():
        pytest.skip("no /dev/ubdb: run inside scripts/lab with two disks")
    began = time.monotonic()
    with QemuLibvirtd(tmp_path_factory.mktemp("libvirtd")) as server:
        print(f"libvirtd starts: {time.monotonic() - began:.1f} s")
        yield server


@pytest.fixture(scope="module")
def machine(
    libvirtd: QemuLibvirtd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VirtualMachine]:
    began = time.monotonic()
    with VirtualMachine(libvirtd, tmp_path_factory.mktemp("machine")) as booted:
        print(f"the machine boots: {time.monotonic() - began:.1f} s", booted.console.read_text())
        yield booted


@pytest.fixture(scope="module")
def device() -> Iterator[Path]:
    dmsetup("create", NAME, "--table", table(SIZE_BYTES))
    yield DEVICE
    with DEVICE.open("r+b") as file:  # LVM takes no disk on which it finds a filesystem
        file.write(bytes(1 << 20))
    dmsetup("remove", "--retry", NAME)


@pytest.fixture(params=["virtio", "scsi"], scope="module")
def xml(request: pytest.FixtureRequest, machine: VirtualMachine, device: Path) -> Iterator[str]:
    """The description of the device, attached to the machine by this bus."""
    bus = request.param
    resize_device(SIZE_BYTES)
    text = disk_xml(device, SERIAL, TARGETS[bus], bus)
    with timed(f"attach by {bus}"):
        machine.domain.attachDeviceFlags(text, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        machine.disk(SERIAL)
    yield text
    if str(device) in machine.domain.XMLDesc():
        machine.domain.detachDeviceFlags(text, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def machines() -> list[str]:
    """Process ids of all QEMUs."""
    return [
        status.parent.name
        for status in Path("/proc").glob("[0-9]*/comm")
        if status.read_text().startswith("qemu-system")
    ]


def dmsetup(*argv: str) -> None:
    subprocess.run(["/sbin/dmsetup", *argv], check=True, timeout=60)


def table(size_bytes: int) -> str:
    return f"0 {size_bytes // 512} linear {DISK} 0"


def resize_device(size_bytes: int) -> None:
    dmsetup("suspend", NAME)
    dmsetup("reload", NAME, "--table", table(size_bytes))
    dmsetup("resume", NAME)


def features() -> str:
    """The line of the filesystem's features, read from the device outside of the machine."""
    told = subprocess.run(
        ["/sbin/dumpe2fs", "-h", DEVICE], check=True, timeout=60, capture_output=True, text=True
    )
    return next(line for line in told.stdout.splitlines() if line.startswith("Filesystem features"))


def test_blocks_end_the_machine_and_its_definition_though_libvirtd_is_dead(
    tmp_path: Path,
) -> None:
    with QemuLibvirtd(tmp_path) as first, VirtualMachine(first, tmp_path):
        first.kill()
        (process,) = machines()
    assert machines() == []
    with QemuLibvirtd(tmp_path) as second, second.connection() as connection:
        assert connection.listAllDomains() == []
    assert not Path(f"/proc/{process}").exists()


def test_machine_sees_an_attached_device_with_its_serial_and_size(
    machine: VirtualMachine, xml: str
) -> None:
    assert machine.size_bytes(machine.disk(SERIAL)) == SIZE_BYTES


def test_written_in_the_machine_is_on_the_device(machine: VirtualMachine, xml: str) -> None:
    disk = machine.disk(SERIAL)
    with timed("write a stamp"):
        machine.shell(f"echo stamp-of-the-machine | dd of={disk} bs=4096 conv=sync,fsync seek=100")
    with DEVICE.open("rb") as file:
        file.seek(100 * 4096)
        assert file.read(20) == b"stamp-of-the-machine"


def test_frozen_filesystem_is_clean_on_the_device_and_thaws(
    machine: VirtualMachine, xml: str
) -> None:
    disk = machine.disk(SERIAL)
    with timed("mkfs and mount"):
        machine.shell(f"mkfs.ext4 -q -F {disk} && mount -t ext4 {disk} /mnt")
    machine.shell("echo written >/mnt/file && sync")
    assert "needs_recovery" in features()
    with timed("freeze"):
        assert machine.domain.fsFreeze() == 1
    try:
        assert machine.agent("guest-fsfreeze-status") == "frozen"
        assert "needs_recovery" not in features()
    finally:
        with timed("thaw"):
            assert machine.domain.fsThaw() == 1
    machine.shell("echo again >/mnt/file && sync")
    assert "needs_recovery" in features()
    machine.shell("umount /mnt")


def test_block_resize_is_seen_in_the_machine(machine: VirtualMachine, xml: str) -> None:
    disk = machine.disk(SERIAL)
    resize_device(GROWN_BYTES)
    with timed("resize"):
        machine.domain.blockResize(str(DEVICE), GROWN_BYTES, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        machine.await_size(disk, GROWN_BYTES)


def test_libvirtd_killed_and_started_again_finds_the_machine_running(
    machine: VirtualMachine, libvirtd: QemuLibvirtd, xml: str
) -> None:
    libvirtd.kill()
    with timed("libvirtd starts again"):
        libvirtd.start()
    machine.reconnect()
    assert machine.domain.isActive()
    assert machine.run("/bin/echo", "alive") == "alive\n"


def test_detach_takes_the_disk_from_the_machine_and_tells_so(
    machine: VirtualMachine, xml: str
) -> None:
    removed = threading.Event()

    def tell(*_: object) -> None:
        removed.set()

    connection = machine.domain.connect()
    told = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED
    callback = connection.domainEventRegisterAny(machine.domain, told, tell, None)
    try:
        with timed("detach"):
            machine.domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            assert removed.wait(REMOVED_S), "the device was not removed"
    finally:
        connection.domainEventDeregisterAny(callback)
    assert machine.shell("ls /sys/block").split() == []
    assert str(DEVICE) not in machine.domain.XMLDesc()
