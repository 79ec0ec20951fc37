"""Quiet guests for the instant of a snapshot: frozen by their agents, thawed whatever happens.

A guest that stays frozen is worse than a snapshot that is not taken. So before one is frozen the
catalog knows of it, and the watchdog, another process, is armed: it thaws at the deadline, and at
once when this process ends. Both are taken back only when the thaw has been answered; until then it
is tried again, also by the next daemon.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import astuple
from typing import Final

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import (
    BlockdError,
    CatalogUnavailable,
    FreezeNotBegun,
    StorageError,
)
from blockd.domain.guest import Guest, GuestKey
from blockd.domain.snapshot import Quiesce
from blockd.service.guest_ports import Hypervisors, ThawWatchdog
from blockd.service.guests_to_freeze import GuestsToFreeze, volumes_of
from blockd.service.quiet import Quiet

log = structlog.get_logger()

_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 30.0
#: A guest of a connection that is not configured any more is tried for so long.
_GIVE_UP_S: Final = 3600.0


class Freezes:
    """Freezes guests, and never forgets one."""

    def __init__(
        self,
        catalog: Catalog,
        hypervisors: Hypervisors,
        watchdog: ThawWatchdog | None,
        *,
        max_freeze_s: float,
        agent_timeout_s: float,
    ) -> None:
        """How long a guest may be frozen, and how long its agent may take for one answer.

        Args:
            watchdog: None where there are no connections, and so no guests.
        """
        self._catalog, self._hypervisors, self._watchdog = catalog, hypervisors, watchdog
        self._max_freeze_s, self._agent_timeout_s = max_freeze_s, agent_timeout_s
        self._guests = GuestsToFreeze(catalog, hypervisors, agent_timeout_s)
        self._thawing: dict[GuestKey, asyncio.Task[None]] = {}
        self._names: dict[GuestKey, str] = {}
        # Who freezes a guest, or thaws it later, has it for himself: volumes of two classes may be
        # snapshotted at once, and one guest have both.
        self._locks: defaultdict[GuestKey, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def problems(self) -> list[str]:
        """A line for each guest that may be frozen, and cannot be thawed just now."""
        return [
            f"domain {self._names[guest]} may be frozen, and does not answer: it is thawed as soon "
            f"as it does, or: virsh domfsthaw {guest.domain_id}"
            for guest in self._thawing
        ]

    async def start(self) -> None:
        """Thaw whatever an earlier daemon may have left frozen."""
        for guest, name in await self._catalog.read(lambda tx: tx.attachments.frozen()):
            log.warning("thawing a guest that an earlier daemon froze", domain=name)
            self._thaw_later(guest, name)

    async def stop(self) -> None:
        """Leave it to the watchdog and the next start."""
        tasks = list(self._thawing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self, volume_ids: Sequence[str]) -> None:
        """See `GuestsToFreeze.check`."""
        await self._guests.check(volume_ids)

    @asynccontextmanager
    async def quiet(self, volume_ids: Sequence[str], quiesce: Quiesce) -> AsyncIterator[Quiet]:
        """The running guests that have these volumes, frozen for the length of the block.

        Raises:
            StorageError: with `require` alone: one cannot be frozen, or was not for all of it.
        """
        quiet = Quiet()
        if quiesce is Quiesce.NONE or not self._hypervisors.uris:
            if quiesce is Quiesce.REQUIRE:
                raise StorageError("quiesce: no guest is known: see [libvirt] uris")
            yield quiet
            return
        guests = await self._guests.able(volume_ids, quiet, quiesce)
        quiet.volume_ids = volumes_of(guests).intersection(volume_ids)
        if quiesce is Quiesce.REQUIRE:
            without = sorted(quiet.volume_ids.symmetric_difference(volume_ids))
            if quiet.reason is not None or without:
                raise StorageError(
                    f"quiesce: {quiet.reason or f'no running guest has volume {without[0]}'}"
                )
        if not guests:
            yield quiet
            return
        async with AsyncExitStack() as alone:
            why = await self._enter_locks(alone, guests) or await self._journal(guests)
            if why is None:
                async with self._frozen(guests, quiet, quiesce):
                    yield quiet
            else:
                quiet.spoil(why)
                if quiesce is Quiesce.REQUIRE:
                    raise StorageError(f"quiesce: {why}")
                yield quiet
        if quiesce is Quiesce.REQUIRE and quiet.reason is not None:
            raise StorageError(f"quiesce: {quiet.reason}")

    async def _enter_locks(self, stack: AsyncExitStack, guests: Sequence[Guest]) -> str | None:
        """Always in the same order. Why one cannot be had: its thaw does not come to an end.

        Whoever waits holds up all classes of his volumes.
        """
        for guest in sorted(guests, key=lambda guest: astuple(guest.key)):
            patience_s = self._agent_timeout_s if guest.key in self._thawing else None
            try:
                async with asyncio.timeout(patience_s):
                    await stack.enter_async_context(self._locks[guest.key])
            except TimeoutError:
                return f"domain {guest.name} may be frozen, and does not answer"
        return None

    @asynccontextmanager
    async def _frozen(
        self, guests: Sequence[Guest], quiet: Quiet, quiesce: Quiesce
    ) -> AsyncIterator[None]:
        began = time.monotonic()
        counts: dict[GuestKey, int | None] = {}
        try:
            await self._freeze_all(guests, quiet, counts)
            if quiesce is Quiesce.REQUIRE and quiet.reason is not None:
                raise StorageError(f"quiesce: {quiet.reason}")
            yield
        finally:
            thawed = await self._thaw_all(guests, counts)
            quiet.settle(round((time.monotonic() - began) * 1000), self._max_freeze_s * 1000)
        for guest in guests:
            if quiet.reason is None and (thawed.get(guest.key) or 0) < (counts[guest.key] or 0):
                quiet.spoil(f"domain {guest.name} was thawed by somebody else meanwhile")

    async def _journal(self, guests: Sequence[Guest]) -> str | None:
        """From here on each is thawed, whatever happens; else, why none of them may be frozen."""
        if self._watchdog is None:
            return "there is no thaw watchdog, so nothing is frozen"

        def add(tx: Transaction) -> None:
            for guest in guests:
                tx.attachments.add_freeze(guest.key, guest.name)

        try:
            await self._catalog.write("guests freezing", add)
            for guest in guests:
                self._watchdog.arm(guest.key, self._max_freeze_s)
        except BaseException as err:  # nothing is frozen yet
            await asyncio.shield(self._settle_all(guests))
            if isinstance(err, OSError):
                return f"the thaw watchdog is gone, so nothing is frozen: {err}"
            raise
        return None

    async def _freeze_all(
        self, guests: Sequence[Guest], quiet: Quiet, counts: dict[GuestKey, int | None]
    ) -> None:
        """How many file systems of each are frozen; `quiet.reason` says why not all are.

        Args:
            counts: is filled. None: nothing was done to this one. Who is not in it may be frozen.
        """
        # No longer than they may be frozen: an agent that answers late would be frozen for nothing.
        timeout_s = min(self._agent_timeout_s * 2, self._max_freeze_s)
        outcomes = await asyncio.gather(
            *(self._hypervisors.freeze(guest.key, timeout_s) for guest in guests),
            return_exceptions=True,
        )
        for guest, outcome in zip(guests, outcomes, strict=True):
            if isinstance(outcome, int):
                counts[guest.key] = outcome
                if outcome == 0:
                    quiet.reason = f"domain {guest.name} has no file system that can be frozen"
            elif isinstance(outcome, Exception):
                log.warning("guest not frozen", domain=guest.name, reason=str(outcome))
                quiet.reason = str(outcome)
                if isinstance(outcome, FreezeNotBegun):
                    counts[guest.key] = None
            else:
                raise outcome

    async def _thaw_all(
        self, guests: Sequence[Guest], counts: Mapping[GuestKey, int | None]
    ) -> dict[GuestKey, int | None]:
        """Not to be cancelled, and never to fail: what is not thawed here is thawed later.

        How many file systems of each were frozen until now; None: it is not known.
        """
        untouched = [one for one in guests if counts.get(one.key, 0) is None]
        frozen = [one for one in guests if one not in untouched]
        thawing = asyncio.gather(
            self._settle_all(untouched),
            *(self._thaw_now(guest) for guest in frozen),
            return_exceptions=True,
        )
        cancelled: asyncio.CancelledError | None = None
        while not thawing.done():  # each has a deadline
            try:
                await asyncio.shield(thawing)
            except asyncio.CancelledError as err:
                cancelled = err
        if cancelled is not None:
            raise cancelled
        thawed = thawing.result()[1:]
        return {
            guest.key: count if isinstance(count, int) else None
            for guest, count in zip(frozen, thawed, strict=True)
        }

    async def _thaw_now(self, guest: Guest) -> int | None:
        self._names[guest.key] = guest.name
        count = await self._thawed(guest.key)
        if count is None:
            self._thaw_later(guest.key, guest.name)
        return count

    def _thaw_later(self, guest: GuestKey, name: str) -> None:
        if guest in self._thawing:
            return
        self._names[guest] = name
        self._thawing[guest] = asyncio.create_task(self._thaw_until_done(guest), name="thaw")

    async def _thaw_until_done(self, guest: GuestKey) -> None:
        retry_s, began = _FIRST_RETRY_S, time.monotonic()
        try:
            while True:
                async with self._locks[guest]:
                    if await self._thawed(guest) is not None:
                        return
                    if self._is_left(guest) and time.monotonic() - began > _GIVE_UP_S:
                        log.warning("a guest is not thawed", domain=self._names[guest])
                        await self._settle(guest)
                        return
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
        finally:
            self._thawing.pop(guest, None)

    def _is_left(self, guest: GuestKey) -> bool:
        """Whether its connection is not configured any more: it may never be there again."""
        return guest.uri not in self._hypervisors.uris

    async def _thawed(self, guest: GuestKey) -> int | None:
        """One attempt, which raises nothing; None: it failed.

        A guest that is not there, or does not run, is not frozen.
        """
        count = 0
        try:
            count = await self._hypervisors.thaw(guest, self._agent_timeout_s * 2)
        except Exception as err:  # whatever it is, the next attempt may do
            if not isinstance(err, BlockdError):
                log.exception("guest not thawed", domain=self._names[guest])
            elif not await self._is_gone(guest):
                log.warning("guest not thawed", domain=self._names[guest], reason=str(err))
            else:
                await self._settle(guest)
                return 0
            return None
        await self._settle(guest)
        return count

    async def _settle_all(self, guests: Sequence[Guest]) -> None:
        """None of them is frozen by us, but who is still to be thawed."""
        for guest in guests:
            if guest.key not in self._thawing:
                await self._settle(guest.key)

    async def _settle(self, guest: GuestKey) -> None:
        """It is not frozen; raises nothing."""
        try:
            if self._watchdog is not None:
                self._watchdog.disarm(guest)
        except OSError as err:
            log.warning("the thaw watchdog is gone", reason=str(err))
        try:
            await self._catalog.write(
                "guest thawed", lambda tx: tx.attachments.remove_freeze(guest)
            )
        except CatalogUnavailable as err:  # the next start thaws it once more, which does nothing
            log.warning("that a guest is thawed is not noted", reason=str(err))
        except Exception:
            log.exception("that a guest is thawed is not noted")

    async def _is_gone(self, guest: GuestKey) -> bool:
        """Raises nothing; whoever cannot be seen may be there."""
        try:
            async with asyncio.timeout(self._agent_timeout_s * 2):
                found = await self._hypervisors.guest(guest)
        except Exception as err:  # noqa: BLE001 - whatever it is, it is not known to be gone
            log.warning("guest not seen", domain=self._names.get(guest), reason=str(err))
            return False
        return found is None or not found.is_active
