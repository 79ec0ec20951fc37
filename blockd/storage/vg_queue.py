"""One change at a time in a volume group, first come, first served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class VgQueue:
    """A queue whose place can be kept, after its holder left, by a command that still runs."""

    def __init__(self, waited: Callable[[float], None]) -> None:
        """`waited` is told, for each turn, how many seconds it was waited for."""
        self._lock = asyncio.Lock()
        self._waited = waited
        self._keeper: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the volume group for the length of the block."""
        began = time.monotonic()
        await self._lock.acquire()
        self._waited(time.monotonic() - began)
        try:
            yield
        finally:
            if self._keeper is None:
                self._lock.release()
            else:
                self._keeper.add_done_callback(lambda _: self._freed())

    def keep_until(self, end: Awaitable[object]) -> None:
        """The present turn does not end before `end`: an LVM command outlived its deadline."""

        earlier = self._keeper

        async def keep() -> None:
            if earlier is not None:
                await earlier
            await end

        self._keeper = asyncio.create_task(keep(), name="late LVM command")

    def _freed(self) -> None:
        self._keeper = None
        self._lock.release()
