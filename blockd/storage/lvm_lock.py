"""LVM's own lock of a volume group, for the moments in which we talk to the kernel past LVM, and
who else holds it.

Source: lvm2, lib/misc/lvm-flock.c: a file that the holder locks whole, and that is unlinked by who
leaves it last. Who holds it the kernel tells (proc(5), /proc/locks).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from blockd.domain.errors import StorageError

LOCK_DIRECTORY = Path("/run/lock/lvm")
_RETRY_S = 0.05


@asynccontextmanager
async def lvm_lock(vg: str, *, timeout_s: float) -> AsyncIterator[None]:
    """No LVM command changes the volume group within the block; ours would wait for ever.

    Raises:
        StorageError: another command holds it.
    """
    path, deadline = LOCK_DIRECTORY / f"V_{vg}", time.monotonic() + timeout_s
    while (descriptor := _locked(path)) is None:
        if time.monotonic() > deadline:
            raise StorageError(f"another LVM command holds {vg} for more than {timeout_s:g} s")
        await asyncio.sleep(_RETRY_S)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock, None if somebody else holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise StorageError(f"cannot lock {path}: {err.strerror}") from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held; or unlinked by who left it, and no lock any more
    os.close(descriptor)
    return None


def lock_holders(vg: str) -> set[int]:
    """The processes that hold it; empty when that cannot be told."""
    try:
        status = (LOCK_DIRECTORY / f"V_{vg}").stat()
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return set()
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    file = f"{major:02x}:{minor:02x}:{status.st_ino}"
    # `1: FLOCK ADVISORY WRITE 4711 00:19:27 0 EOF`; one that waits has `->` behind the number.
    held = [fields for line in lines if "->" not in (fields := line.split())]
    return {int(fields[4]) for fields in held if file in fields and int(fields[4]) > 0}


def program_of(pid: int) -> str:
    """The name of a process, for people."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return "unknown"
