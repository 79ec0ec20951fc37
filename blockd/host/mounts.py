"""Changes of what is mounted where, of which there is no uevent."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

_MOUNTINFO: Final = Path("/proc/self/mountinfo")


@contextmanager
def mounts_changed(happened: Callable[[], None]) -> Iterator[None]:
    """Call `happened` after each mount and unmount, for the length of the block.

    The kernel marks an open mountinfo with POLLERR and POLLPRI after each change (proc(5)), and
    asyncio waits for neither. So an epoll of its own does, which is readable when it has something.
    """
    loop = asyncio.get_running_loop()
    with _MOUNTINFO.open("rb") as file, closing(select.epoll()) as changes:
        changes.register(file, select.EPOLLERR | select.EPOLLPRI)

        def readable() -> None:
            changes.poll(0)  # asking the kernel is what takes the mark off
            happened()

        loop.add_reader(changes.fileno(), readable)
        try:
            yield
        finally:
            loop.remove_reader(changes.fileno())
