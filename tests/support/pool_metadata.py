"""The metadata of a pool that is down, on the disk and past all caches."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockd.storage.superblock import BLOCK_BYTES
from tests.support.daemon import VG, Place
from tests.support.thin_kernel import dmsetup


@contextmanager
def metadata(place: Place) -> Iterator[tuple[Path, int]]:
    """The disk and the offset in it where the metadata of a pool that is down are."""
    place.lvm("lvchange", "--yes", "-ay", f"{VG}/pool_tmeta")
    first = dmsetup("table", f"{VG}-pool_tmeta").split()[4]
    place.lvm("lvchange", "-an", f"{VG}/pool_tmeta")
    yield place.disk, int(first) * 512


def direct_read(disk: Path, offset: int) -> bytes:
    """A block, past the cache."""
    argv = ["dd", f"if={disk}", f"bs={BLOCK_BYTES}", "count=1", f"skip={offset // BLOCK_BYTES}"]
    return subprocess.run([*argv, "iflag=direct"], capture_output=True, check=True).stdout


def direct_write(disk: Path, offset: int, block: bytes) -> None:
    """A block, past the cache."""
    argv = [
        "dd",
        f"of={disk}",
        f"bs={BLOCK_BYTES}",
        "count=1",
        f"seek={offset // BLOCK_BYTES}",
        "conv=notrunc",
    ]
    subprocess.run([*argv, "oflag=direct"], input=block, capture_output=True, check=True)
