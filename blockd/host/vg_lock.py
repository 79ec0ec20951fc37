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
        LOCK_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            LOCK_DIRECTORY / f"{vg}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        )
    except OSError as err:
        raise StartError(f"cannot lock volume group {vg}: {err}; blockd runs as root") from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    except BlockingIOError:
        pid = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
        raise StartError(
            f"volume group {vg} is served by another blockd (pid {pid}): stop it first"
        ) from None
    finally:
        os.close(descriptor)
