"""Keeps a copy of the catalog with each storage class's disks, a second or so behind it.

A change is written soon, a burst of changes once, and nothing while nothing changes. What must be
in a copy before it goes on waits for `Catalog.copied` (docs/decisions/0014-catalog-copies.md).

Nothing here is awaited while a front is suspended, and nothing here holds a turn while it waits for
anything but the LVM command that makes or extends the space.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog

from blockd.catalog import Catalog
from blockd.catalog.copy import CopySpace, PackedImage
from blockd.domain.effects import SideEffects
from blockd.domain.errors import NoSpace, StartError, StorageError
from blockd.domain.units import MIB, format_size
from blockd.service.classes import StorageClass, StorageClasses

T = TypeVar("T")
log = structlog.get_logger()

#: For two copies of 9,000 rows and more; doubled when a copy needs half of its slot.
_FIRST_BYTES: Final = 8 * MIB

#: From a change to its copy: most verbs have ended by then, and are copied once.
_SETTLE_S: Final = 0.5
#: From one copy to the next, and ten times what making one has taken: see `_pause_s`.
_PAUSE_S: Final = 1.0
_BUSY_SHARE: Final = 10

_DEADLINE_S: Final = 10.0
_RETRY_S: Final = 30.0
#: Where there is no room, LVM is not to be run in vain more often than this.
_MAKE_AGAIN_S: Final = 300.0

#: Behind for longer than this is worth a word in the health.
_LATE_S: Final = 60.0
#: What is told at least of a copy that lacks something: tenths are what health shows.
_LEAST_BEHIND_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class CopyState:
    """How the copy of one class is.

    Attributes:
        written_at: when the newest one was written; None: there is none.
        behind_s: how long the catalog has had changes that it lacks; 0: none.
        problem: why it is not written, in one line.
    """

    storage_class: str
    written_at: str | None
    behind_s: float
    problem: str | None


class CatalogCopies:
    """The copies of one catalog, for as long as the block; a last one is written at its end."""

    def __init__(self, catalog: Catalog, classes: StorageClasses, effects: SideEffects) -> None:
        self._catalog, self._classes, self._effects = catalog, classes, effects
        self._copies: list[_Copy] = []
        self._task: asyncio.Task[None] | None = None
        self._needed_bytes = 0
        self._next_at = 0.0

    async def __aenter__(self) -> Self:
        catalog_id = await self._catalog.read(lambda tx: tx.meta("catalog_id")) or ""
        self._copies = [
            _Copy(one, self._catalog, catalog_id, self._effects) for one in self._classes
        ]
        # Before anything is served: from the first change on there is something to go back to.
        if (packed := await self._packed()) is not None:
            needed_bytes = packed.needed_bytes
            await asyncio.gather(*(copy.make_space(needed_bytes) for copy in self._copies))
            await self._expect_none_newer()
            await asyncio.gather(*(copy.write(packed) for copy in self._copies))
        self._catalog.keep_up = self._keep_up
        self._task = asyncio.create_task(self._run(), name="catalog-copies")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._catalog.keep_up = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self._are_current():
            await self._copy_all()
        for copy in self._copies:
            await copy.close()

    def try_again(self) -> None:
        """Some trouble has ended: what failed is tried at once."""
        for copy in self._copies:
            copy.try_again()
        if not self._are_current():
            self._catalog.changed.set()

    def states(self) -> list[CopyState]:
        """How each copy is."""
        generation = self._catalog.generation
        return [copy.state(generation) for copy in self._copies]

    async def _expect_none_newer(self) -> None:
        # Whoever opened the catalog has compared them, if LVM let him; the next start will.
        if newer := [copy.newer for copy in self._copies if copy.newer]:
            for copy in self._copies:
                await copy.close()
            raise StartError(f"{newer[0]}: start blockd again")

    async def _run(self) -> None:
        while True:
            if self._are_current():
                await self._catalog.changed.wait()
            else:  # something is in the way: look again, also without a change
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_S):
                        await self._catalog.changed.wait()
            self._catalog.changed.clear()
            for copy in self._copies:
                copy.note_change(self._catalog.generation)
            await asyncio.sleep(max(_SETTLE_S, self._next_at - time.monotonic()))
            self._catalog.changed.clear()
            try:
                if not self._are_current():
                    await self._copy_all()
            except Exception:
                log.exception("the catalog is not copied, will be tried again")
            for copy in self._copies:
                copy.begin_to_make_space(self._needed_bytes, self._catalog.changed.set)

    async def _keep_up(self) -> None:
        """See `Catalog.copied`."""
        wanted = self._catalog.generation
        if self._newest() >= wanted or all(copy.is_absent for copy in self._copies):
            return
        await self._copy_all()
        if self._newest() < wanted:
            problems = [copy.problem for copy in self._copies if copy.problem]
            raise StorageError(f"the copy of the catalog is not written: {'; '.join(problems)}")

    async def _copy_all(self) -> None:
        """Write what is committed to where there is space. Takes no turn."""
        if (packed := await self._packed()) is not None:
            await asyncio.gather(*(copy.write(packed) for copy in self._copies))

    async def _packed(self) -> PackedImage | None:
        began = time.monotonic()
        try:
            packed = await self._catalog.packed()
        except StorageError as err:
            for copy in self._copies:
                copy.failed(str(err))
            return None
        self._needed_bytes = packed.needed_bytes
        self._next_at = began + max(_PAUSE_S, _BUSY_SHARE * (time.monotonic() - began))
        return packed

    def _are_current(self) -> bool:
        return all(copy.generation >= self._catalog.generation for copy in self._copies)

    def _newest(self) -> int:
        return max(copy.generation for copy in self._copies)


class _Copy:
    """One class's.

    Attributes:
        problem: why it is not written, in one line.
        is_absent: there is none, and no room for one.
        newer: it is newer than the catalog, in one line: it is never written then.
    """

    def __init__(
        self, storage_class: StorageClass, catalog: Catalog, catalog_id: str, effects: SideEffects
    ) -> None:
        self._name, self._driver = storage_class.name, storage_class.driver
        self._catalog, self._catalog_id, self._effects = catalog, catalog_id, effects
        # Its own, as a disk that hangs must hold up no other copy.
        self._thread = ThreadPoolExecutor(1, f"copy-{storage_class.name}")
        self._writing = asyncio.Lock()
        self._running: Future[Any] | None = None
        self._making: asyncio.Task[None] | None = None
        self._make_at = 0.0
        self._space: CopySpace | None = None
        self._behind_since: float | None = None
        self.problem: str | None = None
        self.is_absent = False
        self.newer = ""

    @property
    def generation(self) -> int:
        """Of what is written; -1: nothing."""
        newest = None if self._space is None else self._space.newest
        return -1 if newest is None else newest.generation

    def note_change(self, generation: int) -> None:
        """There is something that it lacks."""
        if self._behind_since is None and self.generation < generation:
            self._behind_since = time.monotonic()

    def state(self, generation: int) -> CopyState:
        """See `CopyState`; `generation` is the catalog's."""
        newest = None if self._space is None else self._space.newest
        behind_s, problem = 0.0, self.problem
        if self.generation < generation:
            # A commit of this moment may not be noted yet: it is lacking all the same.
            now = time.monotonic()
            behind_s = max(now - (self._behind_since or now), _LEAST_BEHIND_S)
            if problem is None and behind_s > _LATE_S:
                problem = f"it is {behind_s:.0f} s behind"
        return CopyState(
            self._name, None if newest is None else newest.written_at, behind_s, problem
        )

    def try_again(self) -> None:
        """Its space may be had now."""
        self._make_at = 0.0

    def begin_to_make_space(self, needed_bytes: int, when_done: Callable[[], None]) -> None:
        """See `make_space`, where there is too little and it has not just been tried."""
        has_enough = self._space is not None and needed_bytes <= self._space.slot_bytes // 2
        is_making = self._making is not None and not self._making.done()
        if has_enough or is_making or time.monotonic() < self._make_at:
            return
        self._making = asyncio.create_task(
            self.make_space(needed_bytes), name=f"catalog-copy {self._name}"
        )
        self._making.add_done_callback(lambda _: when_done())

    async def make_space(self, needed_bytes: int) -> None:
        """Open the space, made or extended so that twice of what is needed fits; in a turn."""
        size_bytes = _FIRST_BYTES
        while size_bytes < 4 * needed_bytes:
            size_bytes *= 2
        try:
            async with self._driver.turn():
                disk = await self._driver.copy_space(size_bytes)
            async with self._writing:
                if self._space is not None:
                    self._space.grown(disk.size_bytes)
                    return
                space = await self._in_thread(
                    lambda: CopySpace(disk.path, disk.size_bytes, self._catalog_id)
                )
                self._take(space)
            self.is_absent = False
            if self.generation >= 0:  # a copy that may lack nothing, and not be written for long
                self.problem = self._behind_since = None
        except (StorageError, OSError) as err:
            again_s = _MAKE_AGAIN_S if isinstance(err, NoSpace) else _RETRY_S
            self._make_at = time.monotonic() + again_s
            self.is_absent = self._space is None and isinstance(err, NoSpace)
            if self._space is None:
                self.failed(str(err))
            else:
                log.warning("no more space for copies of the catalog", reason=str(err))

    def _take(self, space: CopySpace) -> None:
        """Copies go there, unless a newer catalog is in it than the one that is served."""
        newest = space.newest
        # Once seen it stays so: the served one counts its commits on from where it was.
        if newest is not None and newest.generation > self._catalog.generation:
            self.newer = f"the catalog is older than its copy of {newest.written_at}"
        if self.newer:
            space.close()
            raise StorageError(f"{self.newer}: restart blockd, which restores it")
        self._space = space

    async def write(self, packed: PackedImage) -> None:
        """Write it, if there is space and it is newer than what is there; never raises."""
        try:
            async with self._writing:
                if self._space is None or self.generation >= packed.heading.generation:
                    return
                await self._write(self._space, packed)
        except (StorageError, OSError) as err:
            self.failed(str(err))
            return
        if self.problem is not None:
            log.info("the catalog is copied again", storage_class=self._name)
        self.problem = self._behind_since = None

    async def _write(self, space: CopySpace, packed: PackedImage) -> None:
        def write() -> None:
            with self._effects.around("copy write"):
                space.write(packed)

        if packed.needed_bytes > space.slot_bytes:
            size = format_size(packed.needed_bytes)
            raise NoSpace(f"it has {size}, and the volume group no room for as much twice")
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self._in_thread(write)
        except TimeoutError:
            raise StorageError("the disk does not answer") from None
        except OSError:  # when the device is back it may be another
            self._space = None
            space.close()
            raise

    def failed(self, reason: str) -> None:
        """Note why it is behind."""
        if self.problem != reason:
            log.error("the catalog is not copied", storage_class=self._name, reason=reason)
        self.problem = reason

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do what waits for the disk; a cancelled caller does not stop it, and the next waits."""
        if self._running is not None:
            await asyncio.wait([asyncio.wrap_future(self._running)])
        running: Future[T] = self._thread.submit(work)
        self._running = running
        waited = asyncio.wrap_future(running)
        waited.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([waited])
        return running.result()

    async def close(self) -> None:
        """Let go of thread and space, unless the disk hangs."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait([self._making])
        self._thread.shutdown(wait=False)
        is_idle = self._running is None or self._running.done()
        if self._space is not None and is_idle:
            self._space.close()
