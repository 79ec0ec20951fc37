"""What is under way: one task per intent, from its commit until it is finished or undone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

import structlog

from blockd.catalog import Catalog
from blockd.domain.errors import StorageError, StorageOverdue, Unavailable
from blockd.domain.intent import Intent, Verb
from blockd.service.classes import StorageClasses
from blockd.service.freezes import Freezes
from blockd.service.promises import recall_promises
from blockd.service.retries import Retries
from blockd.service.steps import Steps

log = structlog.get_logger()

_MADE_FROM_NOTHING = (Verb.CREATE_VOLUME, Verb.CREATE_SNAPSHOT, Verb.CREATE_GROUP)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0

#: Nobody holds up one class for longer because he waits for another.
_MORE_TURNS_S = 5.0


class Operations:
    """Carries intents out, each when its turn in its class's queue has come.

    `retries.problems` holds a line for each operation that is being tried again, by intent.
    """

    def __init__(
        self, catalog: Catalog, classes: StorageClasses, freezes: Freezes, *, stop_s: float
    ) -> None:
        """`stop_s`: how long `__aexit__` waits for what has begun."""
        self._catalog, self._classes, self._stop_s = catalog, classes, stop_s
        self._steps = Steps(catalog, classes, freezes)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        self.retries: Retries[int] = Retries()

    def carries_out(self, intent: Intent) -> bool:
        """Whether somebody is at it."""
        return intent.id in self._tasks

    async def under_way(self) -> int:
        """How many operations wait or run, as the journal has it."""
        return await self._catalog.read(lambda tx: tx.intent_count())

    async def recover(self) -> None:
        """Take up what an earlier daemon left unfinished, in the order in which it was begun.

        What that and the unfinished jobs were promised is known again when this returns.
        """
        await recall_promises(self._catalog, self._classes)
        for intent in await self._catalog.read(lambda tx: tx.intents()):
            log.warning(
                "taking up unfinished operation",
                verb=intent.verb,
                resource_id=intent.resource_id,
                phase=intent.phase,
            )
            self.submit(intent)

    def submit(self, intent: Intent) -> asyncio.Task[None]:
        """Begin to carry out an intent that is committed; the task stays ours."""
        task = asyncio.create_task(self._carry_out(intent), name=f"{intent.verb} {intent.id}")
        self._tasks[intent.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(intent.id, None))
        return task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let what runs end, up to the deadline; what waits stays in the journal."""
        self._stopping.set()
        self.retries.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._stop_s)
        parked = list(self._tasks.values())
        for task in parked:
            task.cancel()
        await asyncio.gather(*parked, return_exceptions=True)
        if parked:
            log.warning("parked operations until the next start", count=len(parked))

    async def _carry_out(self, intent: Intent) -> None:
        """Try until it is finished or given up; each attempt takes a turn of its own."""
        retry_s = _FIRST_RETRY_S
        while not self._stopping.is_set():
            follow_ups: list[Intent] = []
            try:
                async with self._turns(intent):
                    if self._stopping.is_set():
                        return
                    follow_ups = await self._attempt(intent)
            except Exception as err:
                # Whatever it was, the journal still says what is to be done, and every step can
                # be done again: a full file system or a busy LV passes, a restart may not come.
                problem = (
                    f"{intent.verb} {intent.resource_id}: {err or type(err).__name__}; "
                    f"tried again in {retry_s:g} s"
                )
                log.exception("operation failed, will be tried again", verb=intent.verb)
                await self.retries.pause(intent.id, problem, retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
                continue
            self.retries.succeeded(intent.id)
            for follow_up in follow_ups:
                self.submit(follow_up)
            return

    @asynccontextmanager
    async def _turns(self, intent: Intent) -> AsyncIterator[None]:
        """The turn of each class that it changes, always in the order of their names.

        It queues for the first alone. The others it is given next: had it to queue for them, too,
        a class in which there is always somebody waiting would never let it have all.

        Raises:
            StorageBusy: while one was held, another's did not come soon enough.
        """
        first, *more = intent.classes
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._classes[first].driver.turn())
            for name in more:
                turn = self._classes[name].turn_soon(_MORE_TURNS_S, holds_another=True)
                await stack.enter_async_context(turn)
            yield

    async def _attempt(self, intent: Intent) -> list[Intent]:
        began = time.monotonic()
        with structlog.contextvars.bound_contextvars(
            verb=intent.verb, resource_id=intent.resource_id
        ):
            try:
                await self._steps.finish(intent.id)
            except Unavailable:
                raise  # storage has not refused: what it did is seen, or done anew, later
            except StorageError as err:
                overdue = isinstance(err, StorageOverdue)
                log.error("operation failed", reason=str(err), overdue=overdue)  # noqa: TRY400
                return await self._steps.give_up(intent.id, err)
            except Exception as err:
                if intent.verb not in _MADE_FROM_NOTHING:
                    raise  # what users see of it may have changed already: only forward is safe
                # Settled within the turn like a refusal: no later operation may come before it.
                log.exception("operation failed unexpectedly")
                reason = f"{type(err).__name__}: {err}"
                return await self._steps.give_up(intent.id, StorageError(reason))
            log.info("operation finished", duration_s=round(time.monotonic() - began, 3))
            return []

    def try_again(self) -> None:
        """What failed is tried at once: some trouble has ended."""
        self.retries.all_again()
