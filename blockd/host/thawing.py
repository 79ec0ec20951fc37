"""The thaw watchdog, told through its pipe."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blockd.domain.guest import GuestKey
from blockd.host import thaw_watchdog as program
from blockd.host.command import Companion


class ThawWatchdog:
    """See the port; its process is `thaw_watchdog.py`."""

    def __init__(self, process: Companion) -> None:
        self._process = process

    def arm(self, guest: GuestKey, within_s: float) -> None:
        """Have it thawed in so many seconds. Raises OSError: there is no watchdog."""
        self._process.arm(f"{guest.uri} {guest.domain_id}", within_s)

    def disarm(self, guest: GuestKey) -> None:
        """It is thawed. Raises OSError: there is no watchdog."""
        self._process.disarm(f"{guest.uri} {guest.domain_id}")


@asynccontextmanager
async def thaw_watchdog() -> AsyncIterator[ThawWatchdog]:
    """A watchdog for the length of the block; it goes on until all it knows is thawed."""
    async with Companion([sys.executable, "-I", program.__file__]) as process:
        yield ThawWatchdog(process)
