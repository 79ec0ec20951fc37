"""A real libvirtd with its driver of QEMU, for tests inside scripts/lab.

libvirt's own folders are built into it: it is for the lab alone, which forgets what is written.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import libvirt

_QEMU_CONF: Final = Path("/etc/libvirt/qemu.conf")
#: Of the machines that run, and of those that are defined.
_RUNNING: Final = Path("/run/libvirt/qemu")
_DEFINED: Final = Path("/etc/libvirt/qemu")
_START_S: Final = 120.0
_END_S: Final = 30.0

#: The lab has no cgroups, no udevd and no security modules.
_QEMU_CONF_TEXT: Final = """\
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 0
stdio_handler = "file"
"""


class QemuLibvirtd:
    """A libvirtd process; the block ends it and every machine that it has started.

    Attributes:
        uri: for `libvirt.open`, and for blockd's configuration.
        log: what it has to say.
    """

    def __init__(self, folder: Path) -> None:
        assert Path("/dev/ubda").is_block_device(), "this is for the guest of scripts/lab alone"
        self.uri = f"qemu+unix:///system?socket={folder}/libvirt-sock"
        self.log = folder / "libvirtd.log"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> QemuLibvirtd:
        _QEMU_CONF.parent.mkdir(parents=True, exist_ok=True)
        _QEMU_CONF.write_text(_QEMU_CONF_TEXT)
        _add_user()
        self._config.write_text(
            f"""
            unix_sock_dir = "{self._folder}"
            auth_unix_rw = "none"
            auth_unix_ro = "none"
            log_outputs = "3:stderr"
            """
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            for file in _RUNNING.glob("*.pid"):
                _end(int(file.read_text()))
            for file in (*_RUNNING.glob("*.*"), *_DEFINED.glob("*.xml")):
                file.unlink()

    @property
    def _config(self) -> Path:
        return self._folder / "libvirtd.conf"

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not been ended by us."""
        return self._process is not None

    def start(self) -> None:
        """Start it and wait until it serves; also after `stop`, with the machines still there."""
        channel = self._folder / "libvirtd-notify.sock"
        channel.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
            self.log.open("ab") as log,
        ):
            notified.bind(str(channel))
            self._process = subprocess.Popen(
                ["/usr/sbin/libvirtd", "--config", self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET": str(channel)},
            )
            try:
                self._await_ready(notified)
                # It is ready before its drivers are; it answers after them, or ends.
                with self.connection():
                    pass
            except libvirt.libvirtError as err:
                self.kill()
                raise AssertionError(f"{self.log.read_text()[-4096:]}\n{err}") from None
            except BaseException:
                self.kill()
                raise

    def _await_ready(self, notified: socket.socket) -> None:
        assert self._process is not None
        ended = os.pidfd_open(self._process.pid)
        try:
            ready, _, _ = select.select([notified.fileno(), ended], [], [], _START_S)
        finally:
            os.close(ended)
        if notified.fileno() not in ready or b"READY=1" not in notified.recv(4096):
            why = "ended" if ready else f"was not ready in {_START_S:.0f} s"
            raise AssertionError(f"{self.log.read_text()[-4096:]}\nlibvirtd {why}")

    def stop(self) -> None:
        """End it as systemd does; its machines live on."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_S)
            raise AssertionError(f"libvirtd did not end in {_END_S:.0f} s") from None
        finally:
            self._process = None

    @contextlib.contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        """A connection of its own."""
        opened = libvirt.open(self.uri)
        try:
            yield opened
        finally:
            opened.close()


def _add_user() -> None:
    """Debian's libvirtd insists on this user, also where it is told to use another one."""
    for file, entry in (
        (Path("/etc/passwd"), "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"),
        (Path("/etc/group"), "libvirt-qemu:x:64055:\n"),
    ):
        if "libvirt-qemu:" not in (text := file.read_text()):
            file.write_text(text + entry)


def _end(pid: int) -> None:
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([ended], [], [], _END_S)[0], f"QEMU {pid} did not end"
    finally:
        os.close(ended)
