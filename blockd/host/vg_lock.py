"""One daemon for each volume group of this host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockd.domain.errors import StartError

#: Not configurable: two daemons with different configurations must meet here.
LOCK_DIRECTORY = Path("/run/lock/blockd")


@contextmanager
def vg_lock(vg: str) -> Iterator[None]:
    """Hold the volume group for this process; freed by the kernel however it ends.

    Raises:
        StartError: another blockd holds it.
    """
    try:
        descriptor = _open(f"{vg}.lock")
    except OSError as err:
        raise StartError(f"cannot lock volume group {vg}: {err}; blockd runs as root") from err
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
            raise StartError(
                f"volume group {vg} is served by another blockd (pid {pid}): stop it first"
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open(name: str) -> int:
    """The lock file. Everybody may write to /run/lock, so the folder in it is looked at first."""
    LOCK_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(LOCK_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise StartError(f"{LOCK_DIRECTORY} belongs to somebody else: remove it")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
