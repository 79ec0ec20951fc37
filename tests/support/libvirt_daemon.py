"""A real libvirtd with libvirt's test driver behind it: domains that are told what to be.

The driver's state lives in the daemon, so that several processes see the same guests, and it is
stopped and started like any other. Domains of the test driver freeze and thaw; they attach nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import libvirt

AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


class LibvirtDaemon:
    """One libvirtd in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: Any = None
        self.uri = f"test+unix:///default?socket={folder}/libvirt-sock"
        (folder / "none").mkdir()
        (folder / "conf").write_text(
            f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            # Between two tests nobody runs libvirt's event loop, which would answer it.
            "keepalive_interval = -1\n"
        )

    def start(self) -> None:
        """Start it; its test driver lives for as long as somebody is connected, as this is."""
        # No driver but the one that is built in: others want users, bridges and firewalls.
        environment = {**os.environ, "LIBVIRT_DRIVER_DIR": str(self._folder / "none")}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/usr/sbin/libvirtd", "-f", f"{self._folder}/conf", "-p", f"{self._folder}/pid"],
                env=environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while self._kept is None:
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            with suppress(libvirt.libvirtError):
                self._kept = libvirt.open(self.uri)
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it: its guests are gone, as no hypervisor's would be."""
        if self._kept is not None:
            with suppress(libvirt.libvirtError):
                self._kept.close()
            self._kept = None
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Have it answer nobody any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody new can connect for the length of the block; its guests stay as they are."""
        socket = self._folder / "libvirt-sock"
        aside = socket.rename(self._folder / "aside")
        try:
            yield
        finally:
            aside.rename(socket)

    def domain(
        self,
        name: str,
        volume_ids: Sequence[str] = (),
        *,
        agent: bool = True,
        source: str | None = None,
    ) -> Any:
        """A running, transient domain with these volumes, and a `source`, as its disks."""
        paths = [f"/dev/blockd/{id_}" for id_ in volume_ids] + ([source] if source else [])
        disks = "".join(
            f"<disk type='block'><source dev='{path}'/>"
            f"<target dev='vd{'abcdefghij'[number]}' bus='virtio'/></disk>"
            for number, path in enumerate(paths)
        )
        return self._kept.createXML(
            f"<domain type='test'><name>{name}</name><memory>65536</memory>"
            f"<os><type>hvm</type></os><devices>{AGENT if agent else ''}{disks}</devices></domain>"
        )

    def define(self, name: str, volume_ids: Sequence[str] = ()) -> Any:
        """The same, defined and not running."""
        running = self.domain(name, volume_ids)
        description = running.XMLDesc(0)
        running.destroy()
        return self._kept.defineXML(description)


@contextmanager
def libvirt_daemon() -> Iterator[LibvirtDaemon]:
    """A libvirtd for the length of the block."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    # Not below pytest's folder: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="libvirtd-"))
    daemon = LibvirtDaemon(folder)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
        shutil.rmtree(folder)
