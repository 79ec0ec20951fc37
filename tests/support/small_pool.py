"""A small pool with room around it in the lab, and what a daemon says of it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockd.storage.lvm_config import write_lvm_config
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place

POOL_BYTES = 256 * 1024**2


@contextmanager
def pool_on(place: Place, *disks: Path) -> Iterator[None]:
    """Its volume group and a small pool, with its metadata on the last disk, for the block."""
    write_lvm_config(
        place.run / "lvm", [str(disk) for disk in disks], udev=False, reserved_memory_kib=512
    )
    place.lvm("vgcreate", VG, *map(str, disks))
    place.lvm("lvcreate", "-L", "4m", "-n", "meta", VG, str(disks[-1]))
    place.lvm("lvcreate", "-L", f"{POOL_BYTES}b", "-n", "pool", VG, str(disks[0]))
    place.lvm("lvconvert", "-y", "--type", "thin-pool", "--poolmetadata", f"{VG}/meta",
              "--chunksize", "64k", "--zero", "y", f"{VG}/pool")  # fmt: skip
    try:
        yield
    finally:
        for front in Path("/dev/blockd").glob("*"):
            subprocess.run(["/sbin/dmsetup", "remove", f"blockd-{front.name}"], check=True)
            front.unlink()
        place.lvm("vgremove", "--force", "--force", "--yes", VG)
        place.lvm("pvremove", "--yes", *map(str, disks))


def until(what: Callable[[], Any], timeout_s: float = 30) -> float:
    """Wait for a condition; how many seconds it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, "did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def pool(api: Api) -> dict[str, Any]:
    """The only one."""
    (found,) = api.host("GET", "pools")["pools"]
    return dict(found)


def problems(api: Api) -> str:
    """All of them."""
    return "\n".join(api.host("GET", "health")["problems"])


def events(daemon: Daemon, text: str) -> list[dict[str, Any]]:
    """What the daemon logged under this name."""
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines() if line[:1] == "{"]
    return [line for line in lines if line.get("event") == text]


def expect_clean_metadata(place: Place) -> None:
    """The pool goes down, and thin_check finds no fault; no daemon runs."""
    take_down(place)
    place.lvm("lvchange", "--yes", "-ay", f"{VG}/pool_tmeta")
    checked = subprocess.run(
        ["thin_check", f"/dev/mapper/{VG}-pool_tmeta"], capture_output=True, text=True, check=False
    )
    place.lvm("lvchange", "-an", f"{VG}/pool_tmeta")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def take_down(place: Place) -> None:
    """As docs/pool-trouble.md says: fronts, volumes and pool; no daemon runs."""
    for front in Path("/dev/blockd").glob("*"):
        subprocess.run(["/sbin/dmsetup", "remove", f"blockd-{front.name}"], check=True)
        front.unlink()
    place.lvm("vgchange", "-an", VG)
