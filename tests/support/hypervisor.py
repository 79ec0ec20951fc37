"""A virtual machine under software emulation, run by libvirt and driven through its guest agent.

It has no disk of its own: it runs from the image that scripts/labkit/guest_image.py makes. Tests
give it the disks they want, and look at them from inside.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import libvirt
import libvirt_qemu

from tests.support.qemu_libvirtd import QemuLibvirtd

#: Made by scripts/setup.
_IMAGE: Final = Path(__file__).resolve().parents[2] / ".venv/lib/guest"
_BOOT_S: Final = 180.0
_STEP_S: Final = 60.0
_POLL_S: Final = 0.1
_MEMORY_MIB: Final = 192

#: Each leaves out work of the kernel's that an emulated processor is slow at; see
#: kernel-parameters.txt. The time stamp counter is the one clock that costs no system call of QEMU.
_KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off nokaslr random.trust_cpu=on"
    " cryptomgr.notests=1 initcall_blacklist=crypto_kdf108_init,init_kprobe_trace"
)

_T = TypeVar("_T")


class CommandFailed(AssertionError):
    """A program inside the machine did not end with 0."""

    def __init__(self, argv: tuple[str, ...], status: int | None, said: str) -> None:
        super().__init__(f"{' '.join(argv)}: exit status {status}: {said.strip()}")
        self.status = status


def until(what: Callable[[], _T | None], waited_for: str, timeout_s: float = _STEP_S) -> _T:
    """The first answer that is not None or False; libvirt's and the kernel's files tell no event.

    Raises:
        AssertionError: none came within timeout_s.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := what()):
        assert time.monotonic() < deadline, f"{waited_for}: not within {timeout_s:.0f} s"
        time.sleep(_POLL_S)
    return answer


class VirtualMachine:
    """A persistent domain, booted in the block and gone after it.

    Attributes:
        domain: libvirt's handle, on a connection of ours.
        console: the file with what its kernel and the agent have to say.
    """

    def __init__(self, libvirtd: QemuLibvirtd, folder: Path, name: str = "guest") -> None:
        self.name = name
        self.console = folder / f"{name}.console"
        self.domain: libvirt.virDomain
        self._libvirtd = libvirtd

    def __enter__(self) -> VirtualMachine:
        assert _IMAGE.is_dir(), "the image of the virtual machine is missing: run scripts/setup"
        self._connection = libvirt.open(self._libvirtd.uri)
        try:
            self.domain = self._connection.defineXML(self._xml())
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        if not self._libvirtd.is_running:  # then its own end is that of the machines, too
            return
        with self._libvirtd.connection() as connection:
            for domain in connection.listAllDomains():
                if domain.name() == self.name:
                    if domain.isActive():
                        domain.destroy()
                    domain.undefine()

    def reconnect(self) -> None:
        """Take up the domain anew, after libvirtd has been started again."""
        self._connection.close()
        self._connection = libvirt.open(self._libvirtd.uri)
        self.domain = self._connection.lookupByName(self.name)
        self._await_agent(_STEP_S)

    def boot(self) -> None:
        """Start it and wait for its agent; also after `domain.destroy()`, a power cut."""
        self.domain.create()
        self._await_agent(_BOOT_S)

    def _await_agent(self, timeout_s: float) -> None:
        try:
            until(self._answers, "the guest agent", timeout_s)
        except AssertionError as err:
            tail = self.console.read_text(errors="replace")[-4096:]
            raise AssertionError(f"{tail}\n{err}") from None

    def _answers(self) -> bool:
        if "state='connected'" not in self.domain.XMLDesc():
            return False
        # A libvirtd that has just been started says so before it has connected to the agent.
        try:
            self.agent("guest-ping")
        except libvirt.libvirtError as err:
            if err.get_error_code() != libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
                raise
            return False
        return True

    def agent(self, command: str, **arguments: Any) -> Any:
        """What the agent answers to a command of its protocol.

        Raises:
            libvirtError: it said no, or nothing for 30 s.
        """
        asked = json.dumps({"execute": command, "arguments": arguments})
        answer = libvirt_qemu.qemuAgentCommand(self.domain, asked, 30, 0)
        return json.loads(answer)["return"]

    def start(self, *argv: str) -> int:
        """Start a program inside; its process id, for `wait`."""
        begun = self.agent("guest-exec", path=argv[0], arg=argv[1:], **{"capture-output": True})
        return int(begun["pid"])

    def wait(self, pid: int, *argv: str, timeout_s: float = _STEP_S) -> str:
        """Wait for what `start` has started; what it printed.

        Raises:
            CommandFailed: its exit status is not 0.
        """

        def ended() -> Any:
            status = self.agent("guest-exec-status", pid=pid)
            return status if status["exited"] else None

        status = until(ended, f"{' '.join(argv)} in {self.name}", timeout_s)
        out, err = (base64.b64decode(status.get(name, "")) for name in ("out-data", "err-data"))
        if status.get("exitcode") != 0:
            raise CommandFailed(argv, status.get("exitcode"), (err or out).decode())
        return out.decode()

    def run(self, *argv: str, timeout_s: float = _STEP_S) -> str:
        """Run a program inside to its end; what it printed.

        Raises:
            CommandFailed: its exit status is not 0.
        """
        return self.wait(self.start(*argv), *argv, timeout_s=timeout_s)

    def shell(self, script: str, timeout_s: float = _STEP_S) -> str:
        """As `run`, with a script for busybox's shell, which stops at the first failure."""
        return self.run("/bin/sh", "-ec", script, timeout_s=timeout_s)

    def disk(self, serial: str) -> str:
        """The device inside with this serial number, or as much of it as the bus can tell.

        virtio has room for 20 bytes; SCSI for 36, in page 0x80 of its vital product data.
        """
        script = """
        for disk in /sys/block/[sv]d*; do
            [ -e "$disk" ] || continue
            if [ -e "$disk/serial" ]; then
                serial=$(cat "$disk/serial")
            else
                serial=$(tail -c +5 "$disk/device/vpd_pg80")
            fi
            echo "${disk##*/} $serial"
        done
        """

        def found() -> str | None:
            for line in self.shell(script).splitlines():
                name, _, told = line.partition(" ")
                if told and serial.startswith(told):
                    return f"/dev/{name}"
            return None

        return until(found, f"a disk with serial {serial} in {self.name}")

    def size_bytes(self, device: str) -> int:
        """How large a disk is, as the machine sees it."""
        return 512 * int(self.shell(f"cat /sys/block/{Path(device).name}/size"))

    def await_size(self, device: str, size_bytes: int) -> None:
        """Wait until the machine sees a disk at this size."""
        seen = f"{device} of {size_bytes} bytes in {self.name}"
        until(lambda: self.size_bytes(device) == size_bytes, seen)

    def _xml(self) -> str:
        return f"""
        <domain type="qemu">
          <name>{self.name}</name>
          <memory unit="MiB">{_MEMORY_MIB}</memory>
          <vcpu>1</vcpu>
          <os>
            <type arch="x86_64" machine="pc">hvm</type>
            <kernel>{_IMAGE}/vmlinuz</kernel>
            <initrd>{_IMAGE}/initrd</initrd>
            <cmdline>{_KERNEL_ARGUMENTS}</cmdline>
          </os>
          <features><acpi/></features>
          <cpu mode="custom"><model>qemu64</model></cpu>
          <clock offset="utc"><timer name="hpet" present="no"/></clock>
          <on_reboot>destroy</on_reboot>
          <devices>
            <emulator>/usr/bin/qemu-system-x86_64</emulator>
            <controller type="usb" model="none"/>
            <controller type="scsi" model="virtio-scsi"/>
            <serial type="file"><source path="{self.console}"/></serial>
            <channel type="unix">
              <target type="virtio" name="org.qemu.guest_agent.0"/>
            </channel>
            <memballoon model="none"/>
          </devices>
        </domain>
        """


def disk_xml(device: Path, serial: str, target: str, bus: str = "virtio") -> str:
    """A block device of the lab as a disk of the machine, as for `attachDeviceFlags`."""
    return f"""
    <disk type="block" device="disk">
      <driver name="qemu" type="raw" cache="none" io="native" discard="unmap"/>
      <source dev="{device}"/>
      <target dev="{target}" bus="{bus}"/>
      <serial>{serial}</serial>
    </disk>
    """
