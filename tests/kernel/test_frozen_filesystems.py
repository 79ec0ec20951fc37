"""A file system that the host has mounted is frozen by the kernel for the instant of a snapshot.

So the picture holds all that was written, and needs no replay of a journal: it is mounted without.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.lab_drivers import THICK_DISK
from tests.support.daemon import Daemon, Place

pytestmark = pytest.mark.kernel

#: mkfs.xfs makes none smaller than 300 MiB.
SIZE = 320 * 1024**2
MAKE = {"ext4": ["/sbin/mkfs.ext4", "-q"], "xfs": ["/sbin/mkfs.xfs", "-q"]}
WITHOUT_REPLAY = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid"}


class Writer(threading.Thread):
    """Counts into a file, each number durable before the next."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._file, self._new = folder / "counter", folder / "new"
        self._stopping = threading.Event()
        self.has_begun = threading.Event()
        self.durable = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            self._new.write_text(f"{self.durable + 1}")
            self._new.rename(self._file)
            subprocess.run(["/bin/sync", "-f", str(self._file)], check=True)
            self.durable += 1
            self.has_begun.set()

    def __enter__(self) -> Writer:
        self.start()
        assert self.has_begun.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join(60)


@contextmanager
def mounted(kind: str, device: object, folder: Path, options: str = "rw") -> Iterator[None]:
    subprocess.run(["/bin/mount", "-t", kind, "-o", options, str(device), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


@pytest.fixture(params=["thin", "thick"])
def here(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "thin":
        place = Place.fresh(folder)
    else:
        place = Place.fresh(folder, kind="thick", disk=THICK_DISK, snapshot_size_least="64MiB")
    yield place
    place.remove_vg()


@pytest.mark.parametrize("kind", MAKE)
def test_snapshot_of_a_mounted_filesystem_needs_no_replay(
    here: Place, kind: str, tmp_path: Path
) -> None:
    with Daemon(here) as daemon:
        api = daemon.api
        id_ = api.create_volume("v", SIZE)
        subprocess.run([*MAKE[kind], str(api.device(id_))], check=True)
        with mounted(kind, api.device(id_), tmp_path), Writer(tmp_path) as writer:
            before = writer.durable
            snapshot_id = api.snapshot("s", id_)
            after = writer.durable + 1
        clone = api.device(api.clone("c", snapshot_id))
        if kind == "ext4":  # which otherwise may happen to need none
            told = subprocess.run(
                ["/sbin/dumpe2fs", "-h", str(clone)], check=True, capture_output=True, text=True
            )
            assert "needs_recovery" not in told.stdout
        with mounted(kind, clone, tmp_path, WITHOUT_REPLAY[kind]):
            counted = int((tmp_path / "counter").read_text())
        print(f"{kind}: {before} <= {counted} <= {after}")
        assert before <= counted <= after
