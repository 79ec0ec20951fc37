"""A real daemon in the lab, with side effects that can be made fatal."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.client import ORGANIZATION, PROJECT, ZONE, Api
from tests.support.object_store import Server

VG = "faults"
_START_S = 90.0


@dataclass(frozen=True)
class Place:
    """Where a daemon under test lives.

    Attributes:
        state: survives a power cut where that is tested: the catalog's folder.
        run: does not: sockets, logs, LVM configuration.
    """

    state: Path
    run: Path
    disk: Path = Path("/dev/ubdb")
    trash_keep: str = "24h"
    max_suspend: str = "10s"
    command_timeout: str = "120s"
    high_water_percent: float = 95.0
    overcommit: float = 10.0
    names_devices: bool = True
    kind: str = "thin"
    snapshot_size_least: str = "1GiB"
    object_storage: Server | None = None

    @property
    def catalog(self) -> Path:
        """The catalog's file."""
        return self.state / "catalog.sqlite"

    @property
    def config(self) -> Path:
        """The configuration, written anew."""
        path = self.run / "blockd.toml"
        path.write_text(
            f"""
            [host]
            zone = "{ZONE}"
            organization_id = "{ORGANIZATION}"
            default_project_id = "{PROJECT}"
            [api]
            socket = "{self.run}/blockd.sock"
            [catalog]
            path = "{self.catalog}"
            [lvm]
            devices = {f'["{self.disk}"]' if self.names_devices else "[]"}
            system_dir = "{self.run}/lvm"
            reserved_memory_kib = 512
            max_suspend = "{self.max_suspend}"
            command_timeout = "{self.command_timeout}"
            {self._classes}
            [trash]
            keep = "{self.trash_keep}"
            [log]
            format = "json"
            {self._object_storage}
            """,
            "utf-8",
        )
        return path

    @property
    def storage_class(self) -> str:
        """The one class there is."""
        return "bssd" if self.kind == "thick" else "sbs"

    @property
    def _classes(self) -> str:
        if self.kind == "thick":
            return f"""
            [classes.bssd]
            kind = "thick"
            vg = "{VG}"
            snapshot_size_least = "{self.snapshot_size_least}"
            """
        return f"""
            [classes.sbs]
            kind = "thin"
            vg = "{VG}"
            high_water_percent = {self.high_water_percent}
            overcommit = {self.overcommit}
            """

    @property
    def _object_storage(self) -> str:
        if self.object_storage is None:
            return ""
        return f"""
            [object_storage]
            endpoint = "{self.object_storage.url}"
            credentials = "{self.object_storage.credentials}"
            [transfers]
            part_size = "5MiB"
            patience = "5s"
            """

    @classmethod
    def fresh(cls, root: Path, **more: Any) -> Place:
        """A place in a temporary folder, with a pool."""
        (root / "run").mkdir()
        place = cls(state=root, run=root / "run", **more)
        place.make_pool()
        return place

    def lvm(self, *argv: str) -> str:
        """Run LVM by hand in the daemon's LVM configuration; what it printed."""
        done = subprocess.run(
            ["/sbin/lvm", argv[0], "-qq", *argv[1:]],
            env={"LVM_SYSTEM_DIR": f"{self.run}/lvm", "DM_DISABLE_UDEV": "1", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (argv, done.stderr)
        return done.stdout

    def make_pool(self) -> None:
        """As `blockd make-pool`."""
        subprocess.run(
            [sys.executable, "-m", "blockd", "make-pool", "--config", str(self.config)], check=True
        )

    def remove_vg(self) -> None:
        """Give the disk back to the next test; no daemon runs."""
        for front in Path("/dev/blockd").glob("*"):
            name = f"blockd-{front.name}"
            subprocess.run(["/sbin/dmsetup", "remove", name], check=True)
            front.unlink()
        self.lvm("vgremove", "--force", "--force", "--yes", VG)
        self.lvm("pvremove", "--yes", str(self.disk))


class Daemon:
    """A daemon process; the block ends it, whatever state it is in."""

    def __init__(self, place: Place, crash: Sequence[str] = ()) -> None:
        """`crash`: arguments of `tests.support.crash_daemon`, which see."""
        self.place, self.api = place, Api(place.run / "blockd.sock")
        self._crash = tuple(crash)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = place.run / "blockd.log"

    def __enter__(self) -> Daemon:
        channel = self.place.run / "notify.sock"
        channel.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(channel))
            notified.settimeout(1)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "tests.support.crash_daemon"),
                        *("--config", str(self.place.config), *self._crash),
                    ],
                    env={**os.environ, "NOTIFY_SOCKET": str(channel)},
                    stderr=log,
                )
            try:
                self._await_ready(notified)
            except BaseException:
                self.__exit__()
                raise
        return self

    def _await_ready(self, notified: socket.socket) -> None:
        assert self._process is not None
        for _ in range(int(_START_S)):
            try:
                if b"READY=1" in notified.recv(4096):
                    return
            except TimeoutError:
                if self._process.poll() is not None:
                    break
        raise AssertionError(f"the daemon did not start:\n{self.log.read_text()[-3000:]}")

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def arm(self) -> None:
        """From here on side effects count: see `tests.support.crash_daemon`."""
        armed = self.place.run / "armed"
        armed.unlink(missing_ok=True)
        os.mkfifo(armed)
        try:
            descriptor = os.open(armed, os.O_RDONLY | os.O_NONBLOCK)
            os.kill(self.pid, signal.SIGUSR1)
            ready, _, _ = select.select([descriptor], [], [], 30)
            os.close(descriptor)
            assert ready, "the daemon was not armed"
        finally:
            armed.unlink()

    def ended(self, timeout_s: float = 60) -> int:
        """How the daemon ended by itself (a negative signal number, say)."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(30)
                raise
