"""The guard over the pools: extends them in time, makes way when that cannot be, and foretells.

It looks when the kernel raises an event, and as often as the fastest filling known could matter,
at least once a minute: one ioctl each. Processes are started to extend, or when somebody else
changed something. What is weighed here: docs/decisions/0019-pool-guard.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from blockd.domain.errors import StorageError
from blockd.domain.pool import PoolTrouble, PoolUse
from blockd.domain.pool_growth import Growth, growth
from blockd.domain.pool_state import PoolState
from blockd.domain.units import MIB, format_size
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.fill_rate import FillRate

log = structlog.get_logger()

#: A fast disk; and metadata of it, scattered.
_FASTEST_BYTES_S, _FASTEST_METADATA_BYTES_S = 512.0 * MIB, 4.0 * MIB
#: Of the time in which the next mark could be reached, this much passes before the next look.
_SHARE = 1 / 4
_LEAST_WAIT_S, _MOST_WAIT_S = 1.0, 60.0
#: What failed, or what others may have put right, is tried again after so long, and twice that.
_FIRST_RETRY_S, _LAST_RETRY_S = 10.0, 600.0
#: LVM is not asked for requests more often than this.
_COUNTED_S = 10.0


@dataclass(slots=True)
class _Retry:
    """When something may be tried again."""

    due_s: float = 0.0
    times: int = 0

    def put_off(self, now_s: float) -> None:
        self.due_s = now_s + min(_FIRST_RETRY_S * 2**self.times, _LAST_RETRY_S)
        self.times += 1

    def reset(self) -> None:
        self.due_s, self.times = 0.0, 0


@dataclass(slots=True)
class _Watched:
    """What the guard remembers of one class's pool."""

    data: FillRate = field(default_factory=lambda: FillRate(_FASTEST_BYTES_S))
    metadata: FillRate = field(default_factory=lambda: FillRate(_FASTEST_METADATA_BYTES_S))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    trouble: PoolTrouble | None = None
    is_stuck: bool = False
    sizes: tuple[int, int] = (0, 0)
    #: Why the last extension failed; empty when it did not.
    failure: str = ""
    #: What the volume group had left then.
    failed_with_free: int | None = None
    retry: _Retry = field(default_factory=_Retry)
    counted_s: float = 0.0


class PoolGuard:
    """One for all classes."""

    def __init__(
        self,
        classes: StorageClasses,
        count: Callable[[str, str], None] = lambda _class, _outcome: None,
    ) -> None:
        """`count` is told of each extension: its class, and `done` or `failed`."""
        self._classes, self._count = classes, count
        self._watched = {storage_class.name: _Watched() for storage_class in classes}

    async def run(self, give_way: Callable[[StorageClass], Awaitable[bool]]) -> None:
        """Watch until cancelled; the daemon owns this.

        Args:
            give_way: erases the oldest of a class's trash; whether there was any.
        """
        await asyncio.gather(*(self._watch(item, give_way) for item in self._classes))

    async def _watch(
        self, storage_class: StorageClass, give_way: Callable[[StorageClass], Awaitable[bool]]
    ) -> None:
        while True:
            try:
                wait_s = await self._look(storage_class, give_way)
            except StorageError as err:
                log.warning(
                    "pool cannot be looked at", storage_class=storage_class.name, reason=str(err)
                )
                wait_s = _MOST_WAIT_S
            except Exception:
                # Whatever it was, a pool that nobody watches runs full.
                log.exception("watching a pool", storage_class=storage_class.name)
                wait_s = _MOST_WAIT_S
            await storage_class.driver.pool_event(wait_s)

    async def make_room(self, storage_class: StorageClass) -> None:
        """Before a request is refused for room: extend the pool, if others have not done so."""
        watched = self._watched[storage_class.name]
        async with watched.lock:
            if storage_class.is_thick:
                await storage_class.driver.recount()
                return
            if time.monotonic() - watched.counted_s >= _COUNTED_S:
                await self._count_again(storage_class)
            await self._grow(storage_class, await storage_class.driver.pool())

    async def state(self, storage_class: StorageClass) -> PoolState:
        """A class's pool as it is now: one ioctl.

        Raises:
            StorageError: the kernel does not tell.
        """
        use, watched = await storage_class.driver.pool(), self._watched[storage_class.name]
        left_bytes = use.size_bytes - use.used_bytes
        obstacle, addable_bytes, is_stuck = "", 0, False
        if use.free_bytes is not None:
            obstacle = "" if use.free_bytes else f"volume group {use.name} is full"
        else:
            able = growth(use, storage_class.bounds)
            obstacle, addable_bytes = self._obstacle(use, able, watched), able.addable_bytes
            is_stuck = able.is_stuck or (able.is_due and bool(watched.failure))
        metadata_left_bytes = use.metadata_size_bytes - use.metadata_used_bytes
        return PoolState(
            use,
            obstacle,
            addable_bytes,
            is_stuck,
            watched.data.bytes_s(),
            watched.data.full_in_s(left_bytes + addable_bytes),
            watched.metadata.full_in_s(metadata_left_bytes) if use.metadata_size_bytes else None,
        )

    def _obstacle(self, use: PoolUse, able: Growth, watched: _Watched) -> str:
        trouble = use.trouble
        if trouble is not None and not trouble.passes_with_room:
            return f"the pool is in trouble: {trouble}"
        if watched.failure:
            in_s = max(watched.retry.due_s - time.monotonic(), 0)
            return f"the last extension failed: {watched.failure}; tried again in {in_s:.0f} s"
        return able.obstacle

    async def _look(
        self, storage_class: StorageClass, give_way: Callable[[StorageClass], Awaitable[bool]]
    ) -> float:
        """One look, and what follows from it; after how many seconds the next one is due."""
        watched = self._watched[storage_class.name]
        use = await storage_class.driver.pool()
        self._note(storage_class, watched, use)
        if storage_class.is_thick:
            return _MOST_WAIT_S
        trouble = use.trouble
        if trouble is not None and not trouble.passes_with_room:
            return _MOST_WAIT_S
        async with watched.lock:
            if await self._grow(storage_class, use):
                return 0.0
        if storage_class.is_above_high_water(use) and await give_way(storage_class):
            return 0.0
        wait_s = _next_look_s(use, storage_class, watched)
        if watched.failure:
            wait_s = min(wait_s, max(watched.retry.due_s - time.monotonic(), _LEAST_WAIT_S))
        return wait_s

    def _note(self, storage_class: StorageClass, watched: _Watched, use: PoolUse) -> None:
        """Remember how full it is, and say loudly what has changed."""
        now_s = time.monotonic()
        watched.data.take(now_s, use.used_bytes)
        watched.metadata.take(now_s, use.metadata_used_bytes)
        trouble = use.trouble
        if trouble is watched.trouble:
            return
        told = {"storage_class": storage_class.name, "pool": use.name}
        if trouble is None:
            log.info("pool has recovered", **told, was=str(watched.trouble))
        else:
            log.error("pool in trouble", **told, trouble=str(trouble), when_full=use.when_full)
        watched.trouble = trouble

    async def _grow(self, storage_class: StorageClass, use: PoolUse) -> bool:
        """Extend the pool if that is due and can be; whether it was. Within the lock."""
        watched = self._watched[storage_class.name]
        sizes = use.size_bytes, use.metadata_size_bytes
        if watched.sizes not in ((0, 0), sizes):  # by somebody else's hand
            log.info("pool has another size", pool=use.name, size_bytes=use.size_bytes)
            await self._count_again(storage_class)
            use = await storage_class.driver.pool()
            watched.failure = ""
            watched.retry.reset()
        watched.sizes = sizes
        able = growth(use, storage_class.bounds)
        self._say_if_stuck(storage_class, watched, use, able)
        if not able.is_due:
            if not able.is_stuck:
                watched.failure = ""
                watched.retry.reset()
            return False
        if use.group_free_bytes != watched.failed_with_free:  # others have changed what there is
            watched.retry.reset()
        if time.monotonic() < watched.retry.due_s:
            return False
        return await self._extend(storage_class, watched, use, able)

    async def _extend(
        self, storage_class: StorageClass, watched: _Watched, use: PoolUse, able: Growth
    ) -> bool:
        try:
            await storage_class.driver.extend_pool(*_sizes_due(use, able))
        except StorageError as err:
            watched.failure = str(err)
            watched.retry.put_off(time.monotonic())
            log.error("pool cannot be extended", pool=use.name, reason=str(err))  # noqa: TRY400
            self._count(storage_class.name, "failed")
            watched.failed_with_free = (await storage_class.driver.pool()).group_free_bytes
            return False
        watched.failure = ""
        watched.retry.reset()
        grown = await storage_class.driver.pool()
        watched.sizes = grown.size_bytes, grown.metadata_size_bytes
        log.info(
            "pool extended",
            pool=use.name,
            size_bytes=grown.size_bytes,
            metadata_size_bytes=grown.metadata_size_bytes,
            group_free_bytes=grown.group_free_bytes,
        )
        self._count(storage_class.name, "done")
        return True

    def _say_if_stuck(
        self, storage_class: StorageClass, watched: _Watched, use: PoolUse, able: Growth
    ) -> None:
        if able.is_stuck and not watched.is_stuck:
            log.error(
                "pool is low and cannot be extended",
                storage_class=storage_class.name,
                pool=use.name,
                obstacle=able.obstacle,
                data=f"{format_size(use.used_bytes)} of {format_size(use.size_bytes)}",
                metadata_used_bytes=use.metadata_used_bytes,
            )
        watched.is_stuck = able.is_stuck

    async def _count_again(self, storage_class: StorageClass) -> None:
        self._watched[storage_class.name].counted_s = time.monotonic()
        try:
            await storage_class.driver.recount()
        except StorageError as err:
            log.warning("room not counted anew", storage_class=storage_class.name, reason=str(err))


def _sizes_due(use: PoolUse, able: Growth) -> tuple[int, int]:
    """Of data and metadata; sizes, not differences: what others add meanwhile is part of them."""
    data, metadata = able.data.due_bytes, able.metadata.due_bytes
    return (
        use.size_bytes + data if data else 0,
        use.metadata_size_bytes + metadata if metadata else 0,
    )


def _next_look_s(use: PoolUse, storage_class: StorageClass, watched: _Watched) -> float:
    """A share of the time in which the pool could reach its next mark."""
    bounds, high = storage_class.bounds, storage_class.high_water_percent
    waits = [_MOST_WAIT_S / _SHARE]
    for used, size, low, rate in (
        (use.used_bytes, use.size_bytes, bounds.data, watched.data),
        (use.metadata_used_bytes, use.metadata_size_bytes, bounds.metadata, watched.metadata),
    ):
        marks = (size * percent / 100 for percent in (low.low_water_percent, high, 100.0))
        left = next((mark - used for mark in marks if mark > used), None)
        if left is not None:
            waits.append(left / rate.fastest_bytes_s)
    return min(max(min(waits) * _SHARE, _LEAST_WAIT_S), _MOST_WAIT_S)
