"""The disks of the campaign, and what can be done to them while a pool lies on them.

Each volume group lies on a dm-linear of ours over a disk, whose table can be exchanged for one that
fails (dm-flakey) or has bad sectors (dm-dust).
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockd.domain.errors import StorageError
from blockd.storage.dm import DeviceInfo, DeviceMapper
from blockd.storage.lvm_config import write_lvm_config
from tests.support.daemon import THICK_VG, VG, Place
from tests.support.object_store import Server

THIN_DISK, THICK_DISK, STATE_DISK = (Path(f"/dev/ubd{letter}") for letter in "abc")
THIN_PV, THICK_PV = Path("/dev/mapper/faults-thin"), Path("/dev/mapper/faults-thick")
RUN, STATE = Path("/run/blockd-faults"), Path("/var/lib/blockd-faults")

#: Small, so that it can be filled in seconds; it fails when it is full instead of waiting a minute.
POOL_MIB, METADATA_MIB = 160, 4

_RAW_IDS, _RAW_UUID = range(1_000_000, 1_002_000), "FAULTS-raw"
_libc = ctypes.CDLL(None, use_errno=True)


class Disks:
    """All of them, in a guest that has just booted."""

    def __init__(self, mapper: DeviceMapper) -> None:
        self._mapper = mapper
        for path, disk in ((THIN_PV, THIN_DISK), (THICK_PV, THICK_DISK)):
            mapper.create(path.name, _uuid(path))
            self._load(path, "linear", f"{disk} 0")
            info = mapper.info(_uuid(path))
            assert info is not None
            path.symlink_to(f"../dm-{info.minor}")

    def _load(self, path: Path, kind: str, params: str) -> None:
        disk = THIN_DISK if path == THIN_PV else THICK_DISK
        sectors = int(Path(f"/sys/block/{disk.name}/size").read_text())
        self._mapper.load(_uuid(path), sectors, kind, params)
        self._mapper.resume(_uuid(path))

    @contextmanager
    def failing(self, up_s: int, down_s: int) -> Iterator[None]:
        """The thin class's disk answers for `up_s`, then fails all I/O for `down_s`, and so on."""
        with self._exchanged("flakey", f"{THIN_DISK} 0 {up_s} {down_s}"):
            yield

    @contextmanager
    def bad_sectors(self, chance: random.Random, count: int) -> Iterator[None]:
        """Some sectors of the thin class's disk cannot be read until they are written."""
        with self._exchanged("dust", f"{THIN_DISK} 0 512"):
            for sector in chance.sample(range(4096, 400_000), count):
                self._mapper.message(_uuid(THIN_PV), f"addbadblock {sector}")
            self._mapper.message(_uuid(THIN_PV), "enable")
            yield

    @contextmanager
    def _exchanged(self, kind: str, params: str) -> Iterator[None]:
        subprocess.run(["/sbin/modprobe", f"dm-{kind}"], check=True)
        self._swap(kind, params)
        try:
            yield
        finally:
            self._swap("linear", f"{THIN_DISK} 0")

    def _swap(self, kind: str, params: str) -> None:
        self._mapper.suspend(_uuid(THIN_PV), freeze=False)
        self._load(THIN_PV, kind, params)

    # the pool

    def make_pool(self, place: Place) -> None:
        """Volume groups and pool of a new campaign."""
        self.set_up_lvm()
        for vg, disk in ((VG, THIN_PV), (THICK_VG, THICK_PV)):
            place.lvm("vgcreate", vg, str(disk))
        size = ("-L", f"{POOL_MIB}m", "--poolmetadatasize", f"{METADATA_MIB}m")
        options = ("--chunksize", "64k", "-Zy", "-n", "pool")
        place.lvm("lvcreate", "--type", "thin-pool", "-y", *size, *options, VG)
        place.lvm("lvchange", "--errorwhenfull", "y", f"{VG}/pool")

    def set_up_lvm(self) -> None:
        """The configuration that the daemon would write, as it does not run yet."""
        disks = [str(THIN_PV), str(THICK_PV)]
        write_lvm_config(RUN / "lvm", disks, udev=False, reserved_memory_kib=512)

    def _pool(self) -> DeviceInfo | None:
        # Without a volume that uses it LVM puts no second device on top of it.
        there = map(self._mapper.info_of_name, (f"{VG}-pool-tpool", f"{VG}-pool"))
        return next((info for info in there if info is not None), None)

    def pool_status(self) -> list[str]:
        """The words of its status; none while it is not active."""
        info = self._pool()
        return [] if info is None else self._mapper.status(info.uuid)[0].params.split()

    def is_pool_fit(self) -> bool:
        """Whether it takes writes and needs no check."""
        status = self.pool_status()
        return "rw" in status and "needs_check" not in status

    def fill_metadata(self) -> int:
        """Thin devices that LVM knows nothing of, each with one chunk, until no more can be made.

        Returns:
            How many there are; see `forget_raw_devices`.
        """
        pool = self._pool()
        assert pool is not None
        for number in _RAW_IDS:
            try:
                self._mapper.message(pool.uuid, f"create_thin {number}")
                self._write_raw(pool.number, number)
            except (StorageError, OSError):
                return number - _RAW_IDS[0]
        return len(_RAW_IDS)

    def _write_raw(self, pool: str, thin_id: int) -> None:
        self._mapper.create("faults-raw", _RAW_UUID)
        try:
            self._mapper.load(_RAW_UUID, 128, "thin", f"{pool} {thin_id}")
            self._mapper.resume(_RAW_UUID)
            info = self._mapper.info(_RAW_UUID)
            assert info is not None
            descriptor = os.open(f"/dev/dm-{info.minor}", os.O_WRONLY)
            try:
                os.pwrite(descriptor, b"x" * 4096, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        finally:
            self._mapper.remove(_RAW_UUID)

    def forget_raw_devices(self, place: Place) -> None:
        """Activates the pool if it is not, and removes what `fill_metadata` made."""
        if not self.pool_status():
            place.lvm("lvchange", "-ay", f"{VG}/pool")
        pool = self._pool()
        assert pool is not None
        for number in _RAW_IDS:
            try:
                self._mapper.message(pool.uuid, f"delete {number}")
            except StorageError:
                return


def place_on(server: Server) -> Place:
    """Both classes."""
    return Place(
        state=STATE,
        run=RUN,
        disk=THIN_PV,
        thick_disk=THICK_PV,
        trash_keep="0s",
        high_water_percent=90.0,
        object_storage=server,
    )


def mount_state(*, make: bool) -> None:
    """The catalog's ext4, on a disk of its own.

    Raises:
        OSError: the kernel refuses.
    """
    if make:
        subprocess.run(["/sbin/mkfs.ext4", "-q", str(STATE_DISK)], check=True)
    STATE.mkdir(parents=True, exist_ok=True)
    RUN.mkdir()
    if _libc.mount(os.fsencode(STATE_DISK), os.fsencode(STATE), b"ext4", 0, None):
        raise OSError(ctypes.get_errno(), f"mount {STATE_DISK}")


def _uuid(path: Path) -> str:
    return f"FAULTS-{path.name}"
