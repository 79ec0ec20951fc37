"""One change at a time in a volume group, first come, first served.

But what cannot wait goes before what can: a copy-on-write store that runs full while its growth
stands in the queue costs a snapshot. And whoever holds up another volume group while he waits goes
before those who hold up none.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol


class TurnWatch(Protocol):
    """Is told of turns, within them, and may take a moment for it."""

    async def before_turn(self) -> None:
        """It begins."""

    async def after_turn(self) -> None:
        """It ends."""

    def after_late_turn(self) -> None:
        """It ends with the command that kept it."""


class VgQueue:
    """A queue whose place can be kept, after its holder left, by a command that still runs."""

    def __init__(self, waited: Callable[[float], None]) -> None:
        """`waited` is told, for each turn, how many seconds it was waited for."""
        self._is_held = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._holding: deque[asyncio.Future[None]] = deque()
        self._waited = waited
        self._keeper: asyncio.Task[None] | None = None
        self.watch: TurnWatch | None = None

    @property
    def is_held(self) -> bool:
        """Whether somebody has the turn just now."""
        return self._is_held

    @asynccontextmanager
    async def turn(
        self, *, urgent: bool = False, holds_another: bool = False
    ) -> AsyncIterator[None]:
        """Hold the volume group for the length of the block.

        Args:
            urgent: goes before all others.
            holds_another: holds another volume group meanwhile; goes before all but the urgent.
        """
        began = time.monotonic()
        line = self._holding if holds_another else self._waiting
        await self._acquire(self._urgent if urgent else line)
        self._waited(time.monotonic() - began)
        watch = self.watch
        try:
            if watch is not None:
                await watch.before_turn()
            yield
        finally:
            if self._keeper is not None:
                self._keeper.add_done_callback(lambda _: self._freed(watch))
            else:
                try:
                    if watch is not None:
                        await asyncio.shield(watch.after_turn())
                finally:
                    self._release()

    async def _acquire(self, line: deque[asyncio.Future[None]]) -> None:
        if not self._is_held:
            self._is_held = True
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                with suppress(ValueError):
                    line.remove(place)
            else:  # it was given to us in the same moment
                self._release()
            raise

    def _release(self) -> None:
        """Hand over to whoever is first; nobody can come in between."""
        for line in (self._urgent, self._holding, self._waiting):
            while line:
                place = line.popleft()
                if not place.done():  # one that is done was cancelled and has not left yet
                    place.set_result(None)
                    return
        self._is_held = False

    def keep_until(self, end: Awaitable[object]) -> None:
        """The present turn does not end before `end`: something outlived its deadline."""

        earlier = self._keeper

        async def keep() -> None:
            if earlier is not None:
                await earlier
            await end

        self._keeper = asyncio.create_task(keep(), name="late LVM command")

    def _freed(self, watch: TurnWatch | None) -> None:
        self._keeper = None
        if watch is not None:
            watch.after_late_turn()
        self._release()
