"""The trash: what is deleted stays whole until `keep_s` have passed, then its disk is erased."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import NoRoom, PoolUnfit
from blockd.domain.intent import Intent
from blockd.domain.pool import PoolUse
from blockd.domain.snapshot import Snapshot
from blockd.domain.units import format_timestamp, parse_timestamp
from blockd.domain.volume import Volume
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.operations import Operations
from blockd.service.steps import add_erase

log = structlog.get_logger()

#: Disks erased by one storage command: ten in one cost six tenths of ten commands (facts, 1.1),
#: and nobody waits longer for his turn than for so many.
_BATCH = 16
_RETRY_S = 30.0

#: For room, fewer at once: no more shall be lost than is needed.
_BATCH_FOR_ROOM = 4
_ROOM_DEADLINE_S = 30.0


class Trash:
    """Sleeps until something is due; an idle daemon does nothing here."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        *,
        keep_s: float,
        gives_room: bool = True,
    ) -> None:
        """`gives_room`: whether things are erased early when the pool needs the room."""
        self._catalog, self._classes, self._operations = catalog, classes, operations
        self._keep, self._gives_room = timedelta(seconds=keep_s), gives_room
        self._noticed = asyncio.Event()
        self._room: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def throw(self, tx: Transaction, row: Volume | Snapshot) -> Intent | None:
        """Within the transaction that deletes it: keep a deleted row, or exchange it at once.

        Returns:
            The erasure to be begun after the commit, if nothing is kept.
        """
        if not self._keep:
            return _exchange(tx, row.storage_class, [row])
        if isinstance(row, Volume):
            tx.put_volume(row)
        else:
            tx.put_snapshot(row)
        return None

    def thrown(self, erasure: Intent | None) -> None:
        """After that commit: begin the erasure, or look when the next one is due."""
        if erasure is None:
            self._noticed.set()
        else:
            self._operations.submit(erasure)

    async def pool_with_room(self, storage_class: StorageClass, resource: str) -> PoolUse:
        """The pool's use, once there is room for something of kind `resource`.

        Above the high-water mark the trash is erased, oldest first, until there is room.

        Raises:
            NoRoom: there is none, and nothing (more) in the trash.
        """
        deadline = time.monotonic() + _ROOM_DEADLINE_S
        async with self._room[
            storage_class.name
        ]:  # or many requests at once would erase many times what is needed
            while True:
                try:
                    return await storage_class.check_pool(resource)
                except PoolUnfit:
                    raise
                except NoRoom:
                    if not self._gives_room or time.monotonic() > deadline:
                        raise
                    if not await self._erase_for_room(storage_class.name):
                        raise

    async def _erase_for_room(self, class_name: str) -> bool:
        """Erase the oldest things in the trash; whether there were any."""
        now = format_timestamp(datetime.now(UTC))
        if not await self._catalog.read(partial(_is_due, class_name, now)):
            return False
        log.warning("erasing trash early for room", storage_class=class_name)
        take_out = partial(_take_out, storage_class=class_name, due=now, most=_BATCH_FOR_ROOM)
        intent = await self._catalog.write("trash erasing for room", take_out)
        if intent is not None:
            await asyncio.wait([self._operations.submit(intent)], timeout=_ROOM_DEADLINE_S)
        return True

    async def run(self) -> None:
        """Erase what is due, for ever; the daemon owns and cancels this."""
        while True:
            self._noticed.clear()
            try:
                await self._erase_due()
                wait_s = await self._until_next_s()
            except Exception:
                log.exception("emptying the trash failed, will be tried again")
                wait_s = _RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._noticed.wait()
            except TimeoutError:
                pass

    async def _erase_due(self) -> None:
        due = format_timestamp(datetime.now(UTC) - self._keep)
        for storage_class in self._classes:
            while True:
                if not await self._catalog.read(partial(_is_due, storage_class.name, due)):
                    break
                name = storage_class.name
                take_out = partial(_take_out, storage_class=name, due=due, most=_BATCH)
                intent = await self._catalog.write("trash erasing", take_out)
                if intent is not None:
                    self._operations.submit(intent)

    async def _until_next_s(self) -> float | None:
        oldest = await self._catalog.read(lambda tx: tx.oldest_in_trash())
        if oldest is None:
            return None
        until = parse_timestamp(oldest) + self._keep - datetime.now(UTC)
        return max(until.total_seconds(), 0.0) + 0.001


def _is_due(storage_class: str, due: str, tx: Transaction) -> bool:
    return any(tx.trash(storage_class, due, 1))


def _take_out(tx: Transaction, storage_class: str, due: str, most: int) -> Intent | None:
    """Exchange the rows of a batch for the intent that erases their disks."""
    volume_ids, snapshot_ids = tx.trash(storage_class, due, most)
    rows: list[Volume | Snapshot | None] = [tx.volume(id_) for id_ in volume_ids]
    rows += [tx.snapshot(id_) for id_ in snapshot_ids]
    return _exchange(tx, storage_class, [row for row in rows if row is not None])


def _exchange(
    tx: Transaction, storage_class: str, rows: Sequence[Volume | Snapshot]
) -> Intent | None:
    """From this commit on nothing can bring them back. Rows in error have no disk any more."""
    for row in rows:
        if isinstance(row, Volume):
            tx.remove_volume(row.id)
        else:
            tx.remove_snapshot(row.id)
    disks = [row.disk for row in rows if row.error is None]
    if not disks:
        return None
    fronts = [row.id for row in rows if isinstance(row, Volume)]
    return add_erase(tx, storage_class, disks, fronts)
