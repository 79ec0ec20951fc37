"""The disk of the crash replay: a volume group and the catalog's ext4, two slices of one device.

So whoever cuts the device's writes at one instant cuts both.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from tests.support.daemon import Place
from tests.support.object_store import Server

MIB = 1024**2
PV_BYTES, STATE_BYTES = 640 * MIB, 24 * MIB

#: Recording: the disk and its log. Replay: the log, the disk rebuilt, and a store for changes.
DISK, LOG, REBUILT, CHANGES = (Path(f"/dev/ubd{letter}") for letter in "abcd")
PV, STATE_DISK = Path("/dev/mapper/faults-pv"), Path("/dev/mapper/faults-state")

RUN, STATE = Path("/run/blockd-faults"), Path("/var/lib/blockd-faults")

_libc = ctypes.CDLL(None, use_errno=True)


def slices() -> list[tuple[Path, int, int]]:
    """Of each slice its path, its first sector and its length in sectors."""
    pv_sectors = PV_BYTES // 512
    return [(PV, 0, pv_sectors), (STATE_DISK, pv_sectors, STATE_BYTES // 512)]


def place_on(kind: str, server: Server, *, keeps_trash: bool) -> Place:
    """A daemon's place on the slices."""
    return Place(
        state=STATE,
        run=RUN,
        disk=PV,
        kind=kind,
        trash_keep="24h" if keeps_trash else "0s",
        object_storage=server,
    )


def mount_state() -> None:
    """Mount the catalog's file system, without a process: those are dear in the lab.

    Raises:
        OSError: the kernel refuses.
    """
    STATE.mkdir(parents=True, exist_ok=True)
    source, target = os.fsencode(STATE_DISK), os.fsencode(STATE)
    if _libc.mount(source, target, b"ext4", 0, None):
        raise OSError(ctypes.get_errno(), f"mount {STATE_DISK}")


def unmount_state() -> None:
    """Take it away again.

    Raises:
        OSError: somebody uses it.
    """
    if _libc.umount2(os.fsencode(STATE), 0):
        raise OSError(ctypes.get_errno(), f"umount {STATE}")


def fresh_run() -> None:
    """What a boot forgets."""
    for folder in (RUN, Path("/dev/blockd"), Path("/dev/faults")):
        shutil.rmtree(folder, ignore_errors=True)
    RUN.mkdir()
