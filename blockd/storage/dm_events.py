"""Device-mapper's events without dmeventd: a control device that can be polled.

Source: Linux, drivers/md/dm-ioctl.c, dev_arm_poll and dm_poll (interface 4.37): readable once a
target of any device has raised an event since the last arming.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blockd.domain.errors import StartError

_CONTROL = "/dev/mapper/control"
_ARM_POLL = 0xC138FD10  # _IOWR(DM_IOCTL, 16, struct dm_ioctl)
_HEADER_BYTES = 312


@contextmanager
def dm_events(happened: Callable[[], None]) -> Iterator[None]:
    """Call `happened` after each event of any device, for the length of the block.

    Raises:
        StartError: the kernel is older than 4.15.
    """
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    loop = asyncio.get_running_loop()

    def arm() -> None:
        header = struct.pack("=3I I I", 4, 37, 0, _HEADER_BYTES, _HEADER_BYTES)
        fcntl.ioctl(control, _ARM_POLL, bytearray(header.ljust(_HEADER_BYTES, b"\0")))

    def heard() -> None:
        arm()  # before looking: what happens from here on is heard again
        happened()

    try:
        try:
            arm()
        except OSError as err:
            raise StartError(
                f"{_CONTROL}: no events ({err.strerror}): Linux 4.15 or newer"
            ) from err
        loop.add_reader(control, heard)
        try:
            yield
        finally:
            loop.remove_reader(control)
    finally:
        os.close(control)
