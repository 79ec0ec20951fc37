"""Backups of every class's metadata: daily, before repairs, and when asked for.

They are for the day on which what LVM or dm-thin know is damaged: docs/recovery.md says how they
are put back. A bounded number of files; a clock that jumps neither stops them nor removes any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from blockd.domain.backup import THIN_METADATA, VG_TEXT, Backup, MetadataPart
from blockd.domain.effects import SideEffects
from blockd.domain.errors import BackupFailed, BlockdError, InvalidArguments
from blockd.domain.units import parse_timestamp
from blockd.service.backup_files import BackupFolder, FreshFile, number_of
from blockd.service.classes import StorageClass, StorageClasses

log = structlog.get_logger()

_DAY_S: Final = 86_400.0
_LATE_S: Final = 2 * _DAY_S
#: After a start others have more to do.
_SETTLE_S: Final = 60.0
_FIRST_RETRY_S: Final = 60.0
#: Also the longest sleep: the host may have slept meanwhile.
_LAST_RETRY_S: Final = 3600.0
#: For the turn of the volume group, the pool's one metadata snapshot, and LVM.
_BEGIN_S: Final = 600.0


@dataclass(slots=True)
class _State:
    """How the backups of a class stand; times by `uptime_s`.

    Attributes:
        good_at: when the last whole one was taken; None: not known, or never.
        taken_at: the same, as it is shown.
        failure: why the last attempt failed.
        retry_at, retry_s: when the next attempt comes after a failure, and how long is waited.
    """

    storage_class: StorageClass
    kinds: frozenset[str]
    good_at: float | None = None
    taken_at: str | None = None
    failure: str | None = None
    retry_at: float = 0.0
    retry_s: float = _FIRST_RETRY_S
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def next_at(self, now: float) -> float:
        """When the next one is due."""
        if self.failure is not None:
            return self.retry_at
        return now if self.good_at is None else self.good_at + _DAY_S


class Backups:
    """The backups of all classes."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        classes: StorageClasses,
        effects: SideEffects,
        uptime_s: Callable[[], float],
    ) -> None:
        """Args:
        keep: so many of each class, and so many whole ones where some lack a part.
        uptime_s: a clock that nobody sets.
        """
        self._where, self._uptime_s = folder, uptime_s
        self._folder = BackupFolder(folder, keep, effects)
        self._states = {
            each.name: _State(
                each, frozenset({VG_TEXT} if each.is_thick else {VG_TEXT, THIN_METADATA})
            )
            for each in classes
        }
        self._began_at = uptime_s()

    async def start(self) -> None:
        """Learn from the files when the last ones were taken."""
        for name, state in self._states.items():
            try:
                backups = await asyncio.to_thread(self._folder.backups, name)
            except OSError as err:
                state.failure = f"class {name}: {self._why(err)}"
                continue
            good = next((each for each in backups if each.kinds >= state.kinds), None)
            if good is not None:
                state.taken_at = good.taken_at
                age_s = (datetime.now(UTC) - parse_timestamp(good.taken_at)).total_seconds()
                # One of the future says that a clock is wrong, and nothing of its age.
                state.good_at = self._uptime_s() - age_s if age_s >= 0 else None

    async def run(self, settle_s: float = _SETTLE_S) -> None:
        """Take one of each class a day, until cancelled; the daemon owns this."""
        await asyncio.sleep(settle_s)
        while True:
            for name, state in self._states.items():
                if state.next_at(now := self._uptime_s()) <= now:
                    try:
                        await self.take(name)
                    except Exception as err:
                        log.exception("no backup of metadata", storage_class=name, reason=str(err))
            now = self._uptime_s()
            left_s = min(
                (each.next_at(now) - now for each in self._states.values()), default=_DAY_S
            )
            await asyncio.sleep(min(max(left_s, 1.0), _LAST_RETRY_S))

    async def take(self, class_name: str) -> Backup:
        """Take one now. Never called within a turn of the class: it takes one of its own.

        Raises:
            InvalidArguments: there is no such class.
            BackupFailed: it, or a part of it, could not be had; `kept` is what was.
        """
        state = self._states.get(class_name)
        if state is None:
            known = ", ".join(sorted(self._states))
            raise InvalidArguments.one("class", "constraint", f"class must be one of: {known}")
        async with state.lock:
            try:
                backup = await self._take(state)
            except Exception as err:
                state.failure = str(err) or type(err).__name__
                state.retry_at = self._uptime_s() + state.retry_s
                state.retry_s = min(state.retry_s * 2, _LAST_RETRY_S)
                raise
            state.failure, state.retry_s = None, _FIRST_RETRY_S
            state.good_at, state.taken_at = self._uptime_s(), backup.taken_at
        log.info("metadata backed up", storage_class=class_name, number=backup.number)
        return backup

    async def before_repair(self, class_name: str) -> str | None:
        """Take one before a repair changes anything. Never called within a turn of the class.

        Returns:
            What could not be had, in one line; None: all is safe. A pool that takes no messages
            (read-only, failed) gives no mappings.

        Raises:
            BackupFailed: not even the volume group's text is safe; the repair should not begin.
        """
        try:
            await self.take(class_name)
        except BackupFailed as err:
            if err.kept is None or VG_TEXT not in err.kept.kinds:
                raise
            return str(err)
        return None

    async def take_all(self, class_name: str | None = None) -> list[Backup]:
        """One of each class, or of the one that is named.

        Raises:
            InvalidArguments: there is no such class.
            BackupFailed: of some class; the others are taken all the same.
        """
        taken, failures = [], []
        for name in [*self._states] if class_name is None else [class_name]:
            try:
                taken.append(await self.take(name))
            except BackupFailed as err:
                failures.append(str(err))
        if failures:
            raise BackupFailed("; ".join(failures))
        return taken

    async def listed(self) -> list[Backup]:
        """All that there are, class by class, the newest first.

        Raises:
            BackupFailed: the folder cannot be read.
        """
        try:
            return [
                backup
                for name in self._states
                for backup in await asyncio.to_thread(self._folder.backups, name)
            ]
        except OSError as err:
            raise BackupFailed(f"{self._where}: {err.strerror}") from err

    def problems(self) -> list[str]:
        """A line for each class whose last backup failed, or is older than two days."""
        lines, now = [], self._uptime_s()
        for name, state in self._states.items():
            since = self._began_at if state.good_at is None else state.good_at
            last = f"the last one is of {state.taken_at}" if state.taken_at else "there is none"
            if state.failure is not None:
                lines.append(f"no backup of metadata: {state.failure}; {last}")
            elif now - since > _LATE_S:
                lines.append(f"class {name}: no backup of its metadata for two days: {last}")
        return lines

    async def _take(self, state: _State) -> Backup:
        stem, failures = "", []
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(_BEGIN_S):
                    entered = state.storage_class.driver.metadata()
                    parts = await stack.enter_async_context(entered)
                stem = await asyncio.to_thread(self._folder.begin, state.storage_class.name)
                for part in parts:
                    try:
                        await self._write(stem, part)
                    except (BlockdError, OSError) as err:
                        failures.append(self._why(err))
        except TimeoutError:
            failures.append(f"its turn did not come within {_BEGIN_S:g} s")
        except (BlockdError, OSError) as err:
            failures.append(self._why(err))
        kept = None
        try:
            kept = await asyncio.to_thread(self._settle, state, stem)
        except OSError as err:
            failures.append(self._why(err))
        if failures or kept is None:
            name = state.storage_class.name
            raise BackupFailed(f"class {name}: {'; '.join(failures)}", kept)
        return kept

    def _settle(self, state: _State, stem: str) -> Backup | None:
        """What is safe of the new one; only after it the oldest are removed."""
        name = state.storage_class.name
        found = self._folder.backups(name)
        kept = next((each for each in found if stem and each.number == number_of(stem)), None)
        if kept is not None:
            self._folder.prune(name, state.kinds)
        return kept

    def _why(self, err: Exception) -> str:
        if isinstance(err, OSError):
            return f"{self._where}: {err.strerror or err}"
        return str(err)

    async def _write(self, stem: str, part: MetadataPart) -> None:
        # A thread of its own keeps the calls in order, also when the wait for one is cancelled.
        threads = ThreadPoolExecutor(1, "backup")
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with aclosing(part.content) as content:
                opening = run(threads, self._folder.fresh, stem, part.kind)
                try:
                    fresh = await asyncio.shield(opening)  # else a file would be left open
                    async for piece in content:
                        await run(threads, fresh.write, piece)
                    await run(threads, fresh.keep)
                except BaseException:
                    await asyncio.shield(_drop(threads, opening))
                    raise
        finally:
            threads.shutdown(wait=False)


async def _drop(threads: ThreadPoolExecutor, opening: asyncio.Future[FreshFile]) -> None:
    await asyncio.wait([opening])
    if opening.exception() is None:
        await asyncio.get_running_loop().run_in_executor(threads, opening.result().drop)
