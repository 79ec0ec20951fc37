"""A real daemon in the lab, with side effects that can be made fatal."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkServerContext
from pathlib import Path
from typing import Any

from tests.support.client import ORGANIZATION, PROJECT, ZONE, Api
from tests.support.crash_daemon import Death, make_pool, run_daemon
from tests.support.object_store import Server

VG, THICK_VG = "faults", "faultsthick"
_START_S = 90.0


@dataclass(frozen=True)
class Place:
    """Where a daemon under test lives.

    Attributes:
        state: survives a power cut where that is tested: the catalog's folder.
        run: does not: sockets, logs, LVM configuration.
        kind: of the class on `disk`.
        thick_disk: holds a thick class besides, in a volume group of its own; `make_pool` does not
            make that.
        notes: for what a test must not forget in a power cut; nothing that is written there brings
            the catalog onto its disk. None: in `state`.
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
    thick_disk: Path | None = None
    snapshot_size_least: str = "1GiB"
    object_storage: Server | None = None
    notes: Path | None = None
    examines_at_start: bool = False
    trash_policy: str = "trash"
    #: Further lines of the class's section.
    class_options: str = ""
    more_disks: tuple[Path, ...] = ()
    #: Of the libvirt whose guests use the volumes.
    libvirt_uri: str | None = None

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
            devices = {self._devices}
            system_dir = "{self.run}/lvm"
            reserved_memory_kib = 512
            max_suspend = "{self.max_suspend}"
            command_timeout = "{self.command_timeout}"
            {self._classes}
            [daemon]
            examine_at_start = {str(self.examines_at_start).lower()}
            [trash]
            keep = "{self.trash_keep}"
            policy = "{self.trash_policy}"
            [log]
            format = "json"
            {self._object_storage}
            {self._libvirt}
            """,
            "utf-8",
        )
        return path

    @property
    def storage_class(self) -> str:
        """The first class."""
        return "bssd" if self.kind == "thick" else "sbs"

    @property
    def classes(self) -> dict[str, tuple[str, str]]:
        """Of each class its kind and its volume group."""
        first = {self.storage_class: (self.kind, VG)}
        return first | ({"bssd": ("thick", THICK_VG)} if self.thick_disk else {})

    @property
    def _devices(self) -> str:
        disks = [self.disk, self.thick_disk, *self.more_disks] if self.names_devices else []
        return json.dumps([str(disk) for disk in disks if disk])

    @property
    def _classes(self) -> str:
        return "".join(self._section(name, *told) for name, told in self.classes.items())

    def _section(self, name: str, kind: str, vg: str) -> str:
        if kind == "thick":
            return f"""
            [classes.{name}]
            kind = "thick"
            vg = "{vg}"
            snapshot_size_least = "{self.snapshot_size_least}"
            """
        return f"""
            [classes.{name}]
            kind = "thin"
            vg = "{vg}"
            high_water_percent = {self.high_water_percent}
            overcommit = {self.overcommit}
            {self.class_options}
            """

    @property
    def _libvirt(self) -> str:
        return f'[libvirt]\nuris = ["{self.libvirt_uri}"]' if self.libvirt_uri else ""

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
        making = PoolMaking(self)
        assert making.ended() == 0, making.said

    def remove_vg(self) -> None:
        """Give the disk back to the next test; no daemon runs."""
        for front in Path("/dev/blockd").glob("*"):
            name = f"blockd-{front.name}"
            subprocess.run(["/sbin/dmsetup", "remove", name], check=True)
            front.unlink()
        self.lvm("vgremove", "--force", "--force", "--yes", VG)
        self.lvm("pvremove", "--yes", str(self.disk))


def _processes() -> ForkContext | ForkServerContext:
    """Where daemons are forked from: from a server that has imported all of it, and nothing else.

    Not from pytest, with its threads and files; from a program if that has chosen so.
    """
    if multiprocessing.get_start_method(allow_none=True) == "fork":
        return multiprocessing.get_context("fork")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([run_daemon.__module__])
    return server


class PoolMaking:
    """`blockd make-pool`, begun."""

    def __init__(self, place: Place) -> None:
        self._said = place.run / "make-pool.said"
        self._said.unlink(missing_ok=True)
        self._process = _processes().Process(target=make_pool, args=(place.config, self._said))
        self._process.start()

    def ended(self, timeout_s: float = 60) -> int:
        """How it ended."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"make-pool has not ended in {timeout_s} s"
        return self._process.exitcode

    @property
    def said(self) -> str:
        """Its one line."""
        return self._said.read_text() if self._said.exists() else "make-pool said nothing"


class Daemon:
    """A daemon process; the block ends it, whatever state it is in."""

    def __init__(self, place: Place, death: Death | None = None) -> None:
        self.place, self.api = place, Api(place.run / "blockd.sock")
        self.log = place.run / "blockd.log"
        self._channel = place.run / "notify.sock"
        work = (place.config, self.log, self._channel, death or Death())
        self._process = _processes().Process(target=run_daemon, args=work)

    def __enter__(self) -> Daemon:
        self._channel.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(self._channel))
            notified.settimeout(1)
            self._process.start()
            try:
                self._await_ready(notified)
            except BaseException:
                self.__exit__()
                raise
        return self

    def _await_ready(self, notified: socket.socket) -> None:
        for _ in range(int(_START_S)):
            try:
                if b"READY=1" in notified.recv(4096):
                    return
            except TimeoutError:
                if not self._process.is_alive():
                    break
        raise AssertionError(f"the daemon did not start:\n{self.log.read_text()[-3000:]}")

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process.pid is not None
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
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"the daemon has not ended in {timeout_s} s"
        return self._process.exitcode

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self.ended()

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(60)
        if self._process.is_alive():
            self.kill()
            raise AssertionError("the daemon did not end in 60 s")
