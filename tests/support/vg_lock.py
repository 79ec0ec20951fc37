"""LVM's lock of a volume group, held by a test."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from blockd.storage.lvm_lock import LOCK_DIRECTORY


@contextmanager
def vg_lock_held(vg: str) -> Iterator[None]:
    """Somebody else's LVM command that takes its time: ours waits for the lock of the VG.

    As LVM removes the file before it lets go of the lock, who has waited for it may hold another.
    """
    path = LOCK_DIRECTORY / f"V_{vg}"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)
