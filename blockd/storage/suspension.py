"""Suspending several fronts together, and resuming each of them whatever happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Protocol, TypeVar

import structlog

from blockd.domain.errors import StorageError, StorageOverdue
from blockd.host.command import Companion
from blockd.storage.dm import DeviceMapper

T = TypeVar("T")
log = structlog.get_logger()

#: A front whose disk answers is resumed sooner; nobody waits longer for one whose disk does not.
_LEAVE_S = 5.0


class InThread(Protocol):
    """Does what may wait for I/O without stopping the event loop."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        """What `work` answers, or raises."""


class _Hung(StorageOverdue):
    """A front is not suspended in time."""


class Suspension:
    """How the fronts of one storage class of one catalog are suspended."""

    def __init__(
        self, mapper: DeviceMapper, watchdog: Companion, in_thread: InThread, max_suspend_s: float
    ) -> None:
        self._mapper, self._watchdog, self._in_thread = mapper, watchdog, in_thread
        self._max_suspend_s = max_suspend_s

    @asynccontextmanager
    async def suspended(
        self, *uuids: str, freeze: bool, late: list[asyncio.Future[None]] | None = None
    ) -> AsyncIterator[None]:
        """These devices suspended for the length of the block.

        Args:
            freeze: whether file systems on them are frozen; if not, a table that was loaded within
                the block is dropped when it fails, and goes live else.
            late: is given what is left behind; None: nothing is, however long it takes.

        Raises:
            StorageOverdue: see `Fronts.still`.
            StorageError: one cannot be suspended; all are resumed.
        """
        began = time.monotonic()
        try:
            for uuid in uuids:
                self._watchdog.arm(uuid, self._max_suspend_s)
        except OSError as err:
            raise StorageError(f"the front watchdog is gone, nothing is suspended: {err}") from err
        suspending = {
            uuid: asyncio.ensure_future(self._in_thread(partial(self._suspend, uuid, freeze)))
            for uuid in uuids
        }
        # Not to be cancelled: whoever leaves, even while it is being suspended, leaves the fronts
        # resumed. The watchdog stays armed until then.
        try:
            await self._all_suspended(suspending.values(), late)
            yield
        except _Hung:  # the others are resumed, whether somebody waits for it or not
            await self._all_resumed(suspending, late, 0.0, drop_loaded=not freeze)
            raise
        except BaseException:
            await self._all_resumed(suspending, late, _LEAVE_S, drop_loaded=not freeze)
            raise
        if not await self._all_resumed(suspending, late, _LEAVE_S, drop_loaded=False):
            raise StorageOverdue("a volume is not resumed yet: its disk does not answer")
        suspended_s = time.monotonic() - began
        if freeze and suspended_s >= self._max_suspend_s:
            raise StorageOverdue(
                f"the volume was suspended for {suspended_s:.1f} s, longer than [lvm] max_suspend"
            )

    async def _all_suspended(
        self,
        suspending: Collection[asyncio.Future[None]],
        late: list[asyncio.Future[None]] | None,
    ) -> None:
        timeout_s = None if late is None else self._max_suspend_s
        _, pending = await asyncio.wait(
            suspending, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION
        )
        for future in suspending:
            if future.done():
                future.result()
        if pending:
            raise _Hung(
                f"a volume is not suspended within {self._max_suspend_s:g} s: its disk does not "
                "answer"
            )

    async def _all_resumed(
        self,
        suspending: Mapping[str, asyncio.Future[None]],
        late: list[asyncio.Future[None]] | None,
        leave_s: float,
        *,
        drop_loaded: bool,
    ) -> bool:
        """Whether they are; else one was left behind after `leave_s`."""
        resuming = asyncio.ensure_future(
            self._resume_all_after(suspending, drop_loaded=drop_loaded)
        )
        if late is None:
            await asyncio.shield(resuming)
            return True
        await asyncio.wait([resuming], timeout=leave_s)
        if resuming.done():
            resuming.result()
            return True
        late.append(resuming)
        return False

    def _suspend(self, uuid: str, freeze: bool) -> None:
        self._mapper.suspend(uuid, freeze=freeze)

    async def _resume_all_after(
        self, suspending: Mapping[str, asyncio.Future[None]], *, drop_loaded: bool
    ) -> None:
        """None waits for another, and one that cannot be resumed keeps none from it."""
        outcomes = await asyncio.gather(
            *(
                self._resume_after(future, uuid, drop_loaded=drop_loaded)
                for uuid, future in suspending.items()
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _resume_after(
        self, suspending: asyncio.Future[None], uuid: str, *, drop_loaded: bool
    ) -> None:
        with suppress(StorageError):  # then it was not suspended, and resuming does nothing
            await suspending
        if drop_loaded:  # what was loaded must not come to life
            await self._in_thread(lambda: self._mapper.clear(uuid))
        await self._in_thread(lambda: self._mapper.resume(uuid))
        with suppress(OSError):  # the watchdog is gone, but the front is resumed
            self._watchdog.disarm(uuid)


async def end_of(late: Sequence[asyncio.Future[None]], locks: AsyncExitStack) -> None:
    """Until then nobody else does anything with these fronts."""
    async with locks:
        for outcome in await asyncio.gather(*late, return_exceptions=True):
            if outcome is not None:
                log.error("front not resumed", reason=str(outcome))
