"""Watching copy-on-write stores: they grow in time, and a snapshot that is lost is told of.

The kernel raises an event when it gives a snapshot up, but none while a store fills, nor when a
merge is done (Linux, dm-snap.c: dm_table_event is called by __invalidate_snapshot alone). So stores
are asked, one ioctl each, as often as the fastest writing known could fill what is left of them;
and with no stores, nothing is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from blockd.domain.errors import StorageError
from blockd.domain.units import MIB, format_size
from blockd.storage.cow_sizes import CowSizes
from blockd.storage.cow_status import CowStatus, parse_chunk_bytes, parse_cow_status
from blockd.storage.dm import DeviceMapper

log = structlog.get_logger()

#: What a store is taken to fill by at most, until more is seen: a fast disk, shared.
_FASTEST_BYTES_S = 256.0 * MIB
_LEAST_WAIT_S, _MOST_WAIT_S = 0.1, 5.0
#: A process each time, and only while a store is low and there is no room.
_RECOUNT_S = 10.0
#: Of the time in which a store could be full, this much passes before it is asked again.
_SHARE = 1 / 4


@dataclass(slots=True)
class _Store:
    """`origin_bytes`: what the snapshot pictures. `status` is of the instant `asked_at`."""

    uuid: str
    sizes: CowSizes
    origin_bytes: int
    status: CowStatus
    asked_at: float
    rate_bytes_s: float = 0.0
    #: Free bytes of the volume group when growth was refused for want of them.
    refused_at_bytes: int | None = None


class CowWatch:
    """The stores of one class."""

    def __init__(
        self,
        sizes: CowSizes,
        mapper: DeviceMapper,
        grow: Callable[[str, int], Awaitable[None]],
        free_bytes: Callable[[], int],
        recount: Callable[[], Awaitable[None]],
    ) -> None:
        """`grow` makes the store of a snapshot so large, if there is room; takes its own turn.

        So does `recount`, after which `free_bytes` knows of what others have added.
        """
        self._sizes, self._mapper, self._grow, self._free_bytes = sizes, mapper, grow, free_bytes
        self._recount, self._recounted_at = recount, -_RECOUNT_S
        self._stores: dict[str, _Store] = {}
        self._given_up: set[str] = set()
        self._lost: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._fastest_bytes_s = _FASTEST_BYTES_S
        # Of its own: a status waits for the store's lock, and a disk that hangs may hold it.
        self._thread = ThreadPoolExecutor(1, "cow-status")

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False)

    def __contains__(self, snapshot: str) -> bool:
        return snapshot in self._stores

    def knows(self, snapshot: str) -> bool:
        """Whether it is watched, or was told of as lost."""
        return snapshot in self._stores or snapshot in self._given_up

    async def add(self, snapshot: str, uuid: str) -> CowStatus:
        """Watch the store of an active snapshot; its status now."""
        self._given_up.discard(snapshot)
        sizes = self.sizes_of(uuid)
        origin_bytes, status = await self.ask(uuid)
        self._stores[snapshot] = _Store(uuid, sizes, origin_bytes, status, time.monotonic())
        if status.fault:
            self._give_up(snapshot, status)
        self._wake.set()
        return status

    def forget(self, snapshot: str) -> None:
        """It is removed, or being merged."""
        self._given_up.discard(snapshot)
        self._stores.pop(snapshot, None)

    def snapshots(self) -> list[str]:
        """Those that are watched."""
        return list(self._stores)

    def look_now(self) -> None:
        """Something happened: an event of the kernel's, or there is room again."""
        self._wake.set()

    def sizes_of(self, uuid: str) -> CowSizes:
        """The policy in the chunks that the store of such a device was made with."""
        (target,) = self._mapper.table(uuid)
        return self._sizes.with_chunk(parse_chunk_bytes(target.params))

    async def ask(self, uuid: str) -> tuple[int, CowStatus]:
        """Length in bytes and status of a `snapshot` or `snapshot-merge` device."""
        loop = asyncio.get_running_loop()
        (target,) = await loop.run_in_executor(self._thread, self._mapper.status, uuid)
        if target.kind not in ("snapshot", "snapshot-merge"):
            raise StorageError(f"{uuid} is no snapshot but {target.kind}")
        return target.length_sectors * 512, parse_cow_status(target.params)

    async def losses(self) -> AsyncIterator[tuple[str, str]]:
        """See the port."""
        while True:
            yield await self._lost.get()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            for snapshot, store in list(self._stores.items()):
                try:
                    await self._look(snapshot, store)
                except Exception:
                    # The others must be watched whatever happens to this one.
                    log.exception("watching a snapshot's store", snapshot=snapshot)

    def _wait_s(self) -> float | None:
        """A share of the time until a store could be full; None without stores."""
        free_bytes = self._free_bytes()
        fulls = [
            (store.status.size_bytes - store.status.used_bytes) / self._fastest_bytes_s
            for store in self._stores.values()
            if store.status.size_bytes < store.sizes.ceiling(store.origin_bytes)
            and store.refused_at_bytes != free_bytes
        ]
        if not fulls:
            return _MOST_WAIT_S if self._stores else None
        return min(max(min(fulls) * _SHARE, _LEAST_WAIT_S), _MOST_WAIT_S)

    async def _look(self, snapshot: str, store: _Store) -> None:
        try:
            origin_bytes, status = await self.ask(store.uuid)
        except (StorageError, ValueError):
            return  # removed meanwhile, or about to be merged: whoever does that forgets it
        if self._stores.get(snapshot) is not store:
            return
        now = time.monotonic()
        if status.fault:
            self._give_up(snapshot, store.status, status.fault)
            return
        # Not of a shorter time: an event may come right after the last look, and a few chunks
        # would seem to be gigabytes a second.
        elapsed_s = max(now - store.asked_at, _LEAST_WAIT_S)
        rate = (status.used_bytes - store.status.used_bytes) / elapsed_s
        # Falls slowly, so that a pause between two bursts does not hide the second.
        store.rate_bytes_s = max(rate, store.rate_bytes_s * 0.8)
        self._fastest_bytes_s = max(self._fastest_bytes_s, rate)
        store.status, store.asked_at, store.origin_bytes = status, now, origin_bytes
        if status.size_bytes < store.sizes.ceiling(origin_bytes) and store.sizes.is_low(
            status.used_bytes, status.size_bytes, store.rate_bytes_s
        ):
            await self._extend(snapshot, store)

    async def _extend(self, snapshot: str, store: _Store) -> None:
        status, free_bytes = store.status, self._free_bytes()
        wanted_bytes = store.sizes.grown(
            status.used_bytes, status.size_bytes, store.rate_bytes_s, store.origin_bytes
        )
        if free_bytes <= 0 and time.monotonic() - self._recounted_at >= _RECOUNT_S:
            await self._count_again()
            free_bytes = self._free_bytes()
        size_bytes = min(wanted_bytes, status.size_bytes + free_bytes)
        if size_bytes <= status.size_bytes:
            if store.refused_at_bytes != free_bytes:
                store.refused_at_bytes = free_bytes
                log.error(
                    "no room for a snapshot's store to grow: it will be lost when it is full",
                    snapshot=snapshot,
                    used_bytes=status.used_bytes,
                    size_bytes=status.size_bytes,
                )
            return
        try:
            await self._grow(snapshot, size_bytes)
        except StorageError as err:
            log.warning("a snapshot's store cannot grow", snapshot=snapshot, reason=str(err))
            return
        store.refused_at_bytes = None
        log.info("snapshot's store grown", snapshot=snapshot, size_bytes=size_bytes)
        self._wake.set()  # what was written meanwhile may have it low again

    async def _count_again(self) -> None:
        """Somebody may have added room, of which nobody tells us."""
        try:
            await self._recount()
        except StorageError as err:
            log.warning("the room of a volume group cannot be counted", reason=str(err))
        self._recounted_at = time.monotonic()

    def _give_up(self, snapshot: str, last: CowStatus, fault: str = "") -> None:
        store = self._stores.pop(snapshot)
        self._given_up.add(snapshot)
        if store.refused_at_bytes is not None or self._free_bytes() <= 0:
            why = "the volume group had no room for it to grow"
        elif last.fault:
            why = "found so at start"
        else:
            why = "its volume was overwritten faster than it could grow, or its disk failed"
        size = f" of {format_size(last.size_bytes)}" if last.size_bytes else ""
        reason = f"the kernel gave the snapshot up ({fault or last.fault}), its store{size}: {why}"
        log.error("snapshot lost", snapshot=snapshot, reason=reason)
        self._lost.put_nowait((snapshot, reason))
