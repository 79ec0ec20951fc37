"""The trash: what is deleted stays whole until `keep_s` have passed, then its disk is erased.

Of time that the host runs: whoever sets its clock erases nothing (`steady_clock.py`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import NoRoom, PoolUnfit, StorageError
from blockd.domain.intent import Intent
from blockd.domain.pool import PoolTrouble, PoolUse
from blockd.domain.snapshot import Snapshot
from blockd.domain.units import MIB
from blockd.domain.volume import Volume
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.erasures import forget
from blockd.service.operations import Operations
from blockd.service.pool_guard import PoolGuard
from blockd.service.steady_clock import SteadyClock

log = structlog.get_logger()

#: Disks erased by one storage command: ten in one cost six tenths of ten commands (facts, 1.1),
#: and nobody waits longer for his turn than for so many.
_BATCH = 16
_RETRY_S = 30.0
#: A power cut costs at most so much of the time that was counted.
_NOTED_S = 3600.0

#: For room, fewer at once: no more shall be lost than is needed.
_BATCH_FOR_ROOM = 4
_ROOM_DEADLINE_S = 30.0
#: A request does not wait longer for its turn to have free space counted anew.
_COUNT_DEADLINE_S = 5.0

#: A snapshot's store is never larger than its origin and this: the list of what it holds.
_STORE_SHARE = 64
_STORE_MORE_BYTES = 2 * MIB


class Trash:
    """Sleeps until something is due; an idle daemon does nothing here."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        clock: SteadyClock,
        guard: PoolGuard,
        *,
        keep_s: float,
        gives_room: bool = True,
    ) -> None:
        """`gives_room`: whether things are erased early when the pool needs the room."""
        self._catalog, self._classes, self._operations = catalog, classes, operations
        self._clock, self._guard = clock, guard
        self._keep_s, self._gives_room = keep_s, gives_room
        self._noticed = asyncio.Event()
        self._room: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def throw(self, tx: Transaction, row: Volume | Snapshot) -> Intent | None:
        """Within the transaction that deletes it: keep a deleted row, or exchange it at once.

        Returns:
            The erasure to be begun after the commit, if nothing is kept.
        """
        if not self._keep_s:
            return forget(tx, row.storage_class, [row])
        tx.trash.put(row.id, self._clock.now())
        self._clock.note(tx)
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

    @asynccontextmanager
    async def room(
        self,
        storage_class: StorageClass,
        resource: str,
        resource_id: str,
        needs_bytes: int,
    ) -> AsyncIterator[PoolUse]:
        """Make room and promise it, for as long as the block, which commits the request.

        What is promised counts as taken until the steps have taken it, or the block has failed.

        Args:
            needs_bytes: what a thick class takes at once; a thin one takes nothing.

        Raises:
            NoRoom: see `pool_with_room`.
        """
        try:
            yield await self.pool_with_room(storage_class, resource, resource_id, needs_bytes)
        except BaseException:
            storage_class.promised.pop(resource_id, None)
            raise

    async def pool_with_room(
        self,
        storage_class: StorageClass,
        resource: str,
        resource_id: str = "",
        needs_bytes: int = 0,
    ) -> PoolUse:
        """The pool's use, once there is room for something of kind `resource`.

        Above the high-water mark the pool is extended, if it can be. If not, or where too little is
        free, the trash is erased, oldest first, until there is room. Nothing is, where all of the
        trash would not be enough.

        Raises:
            NoRoom: there is none, and nothing (more) in the trash.
        """
        deadline = time.monotonic() + _ROOM_DEADLINE_S
        is_made = is_weighed = is_compared = False
        async with self._room[
            storage_class.name
        ]:  # or many requests at once would erase many times what is needed
            while True:
                try:
                    pool = await storage_class.check_pool(resource, needs_bytes)
                except PoolUnfit:
                    if is_compared or not await self._compare_ids(storage_class):
                        raise
                    is_compared = True
                except NoRoom:
                    if not is_made:
                        await self._make_room(storage_class)
                        is_made = True
                    elif not self._gives_room or time.monotonic() > deadline:
                        raise
                    elif storage_class.is_thick and not is_weighed:
                        if not await self._could_give(storage_class, needs_bytes):
                            raise
                        is_weighed = True
                    elif not await self._erase_for_room(storage_class.name):
                        raise
                else:
                    if needs_bytes:
                        storage_class.promised[resource_id] = needs_bytes
                    return pool

    async def check_room(
        self, storage_class: StorageClass, resource: str, needs_bytes: int = 0
    ) -> None:
        """Refuse what not even all of the trash could make room for, and erase none of it.

        For a request in several classes: none of them is to give its trash before it is known that
        another has room. What the trash of a thin class would give cannot be told: any might do.

        Raises:
            NoRoom: see `pool_with_room`.
        """
        try:
            await storage_class.check_pool(resource, needs_bytes)
        except PoolUnfit:
            if not await self._compare_ids(storage_class):
                raise
            await storage_class.check_pool(resource, needs_bytes)
        except NoRoom:
            await self._make_room(storage_class)
            if self._gives_room and await self._could_give(storage_class, needs_bytes):
                return
            await storage_class.check_pool(resource, needs_bytes)

    async def check_way(self, storage_class: StorageClass, volume: Volume, spare: int = 0) -> None:
        """See `make_way`, before anything is erased for room that the request could not use."""
        gives = self._gives_room
        await self._catalog.read(
            lambda tx: storage_class.surplus_snapshots(tx, volume, spare, gives_way=gives)
        )

    def make_way(
        self, tx: Transaction, storage_class: StorageClass, volume: Volume, spare: int = 0
    ) -> Intent | None:
        """Take as many snapshots of the volume out of the trash as one more of it needs.

        Oldest first. Part of the transaction that takes it.

        Args:
            spare: how many more than the class's limit there may be.

        Returns:
            The erasure, for `way_made` after the commit.

        Raises:
            NoRoom: there are too many that are not in the trash.
        """
        surplus = storage_class.surplus_snapshots(tx, volume, spare, gives_way=self._gives_room)
        if not surplus:
            return None
        rows = [tx.snapshot(id_) for id_ in tx.disks.in_trash_of(volume.disk)[:surplus]]
        return forget(tx, storage_class.name, [row for row in rows if row is not None])

    def way_made(self, erasure: Intent | None) -> None:
        """After that commit, and before the snapshot is begun: begin the erasure, if any."""
        if erasure is not None:
            log.warning("erasing trash early for a snapshot", disks=erasure.texts("disks"))
            self._operations.submit(erasure)

    async def give_way(self, storage_class: StorageClass) -> bool:
        """The pool fills by writing: erase the oldest things in the trash; whether there were any.

        Not where the policy is to erase nothing early.
        """
        if not self._gives_room:
            return False
        async with self._room[storage_class.name]:
            return await self._erase_for_room(storage_class.name)

    async def _make_room(self, storage_class: StorageClass) -> None:
        """Extend the pool, or count anew what is free; if not soon, what is known counts."""
        deadline_s = _COUNT_DEADLINE_S if storage_class.is_thick else _ROOM_DEADLINE_S
        try:
            async with asyncio.timeout(deadline_s):
                await self._guard.make_room(storage_class)
        except (StorageError, TimeoutError) as err:
            log.warning("no room made", storage_class=storage_class.name, reason=str(err))

    async def _compare_ids(self, storage_class: StorageClass) -> bool:
        """Compare the pool's transaction id with LVM's once more, if they are what is in the way.

        Somebody who ran LVM by hand while it was looked at last makes them seem to differ.
        """
        if (await storage_class.driver.pool()).trouble is not PoolTrouble.TRANSACTION_ID:
            return False
        try:
            async with asyncio.timeout(_COUNT_DEADLINE_S):
                await storage_class.driver.recount()
        except (StorageError, TimeoutError) as err:
            log.warning("not compared", storage_class=storage_class.name, reason=str(err))
            return False
        return True

    async def _could_give(self, storage_class: StorageClass, needs_bytes: int) -> bool:
        """Whether there could be room without the trash; False if that is not known."""
        driver, name = storage_class.driver, storage_class.name
        if not storage_class.is_thick:
            return await self._catalog.read(partial(_is_due, name, math.inf, for_room=True))
        if not any(map(any, await self._catalog.read(lambda tx: tx.disks.erasable(name)))):
            return False
        try:
            async with asyncio.timeout(_ROOM_DEADLINE_S), driver.turn():  # behind other erasures
                sizes = await driver.disks()  # a grow that was given up left a disk that is larger
                origins, snapshots = await self._catalog.read(lambda tx: tx.disks.erasable(name))
        except TimeoutError:
            return False
        gives_bytes = 0
        for disk, size_bytes in origins.items():
            gives_bytes += driver.volume_bytes(max(size_bytes, sizes.get(disk, 0)))
        for disk, size_bytes in snapshots.items():
            most_bytes = max(size_bytes, sizes.get(disk, 0))
            most_bytes += most_bytes // _STORE_SHARE + _STORE_MORE_BYTES
            gives_bytes += driver.volume_bytes(most_bytes)
        return gives_bytes >= await storage_class.lacks(needs_bytes)

    async def _erase_for_room(self, class_name: str) -> bool:
        """Erase the oldest things in the trash; whether there were any."""
        now = math.inf
        if not await self._catalog.read(partial(_is_due, class_name, now, for_room=True)):
            return False
        log.warning("erasing trash early for room", storage_class=class_name)
        take_out = partial(
            _take_out, storage_class=class_name, due=now, most=_BATCH_FOR_ROOM, for_room=True
        )
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
        due = self._clock.now() - self._keep_s
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
        oldest = await self._catalog.read(lambda tx: tx.trash.oldest())
        if oldest is None:
            return None
        if self._clock.noted_s_ago > _NOTED_S / 2:
            await self._catalog.write("clock noted", self._clock.note)
        until_s = max(oldest + self._keep_s - self._clock.now(), 0.0) + 0.001
        return min(until_s, _NOTED_S)


def _is_due(storage_class: str, due: float, tx: Transaction, *, for_room: bool = False) -> bool:
    return any(tx.trash.due(storage_class, due, 1, for_room=for_room))


def _take_out(
    tx: Transaction, storage_class: str, due: float, most: int, *, for_room: bool = False
) -> Intent | None:
    """Exchange the rows of a batch for the intent that erases their disks."""
    volume_ids, snapshot_ids = tx.trash.due(storage_class, due, most, for_room=for_room)
    rows: list[Volume | Snapshot | None] = [tx.volume(id_) for id_ in volume_ids]
    rows += [tx.snapshot(id_) for id_ in snapshot_ids]
    return forget(tx, storage_class, [row for row in rows if row is not None])
