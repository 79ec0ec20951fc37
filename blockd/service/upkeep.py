"""Keeping fronts and disks as the catalog says, through trouble that is none of our making.

What cannot be had at start, or is lost later, is tried again until it can: no restart is needed
when the trouble ends. A disk that is not there at all is in error as long as it is gone, which is
nobody's status but what a reader sees (`StorageClass.missing`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import CatalogUnavailable, InUse
from blockd.domain.front import FrontSpec
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.missing_told import tell_of_missing
from blockd.service.shown_snapshots import front_of_snapshot
from blockd.service.steps import front_of

log = structlog.get_logger()

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0


class Upkeep:
    """`problems` holds, by class, a line for each thing that cannot be had now."""

    def __init__(self, catalog: Catalog, classes: StorageClasses) -> None:
        self._catalog, self._classes = catalog, classes
        self.problems: dict[str, Sequence[str]] = {}
        #: Are called when some trouble has ended.
        self.recovered: list[Callable[[], None]] = []
        self._set_up_for: dict[str, set[str]] = {}
        self._to_retry: dict[str, Sequence[str]] = {}

    async def lines(self, storage_class: StorageClass) -> list[str]:
        """What cannot be had now in a class, less what was deleted meanwhile."""
        name, lines = storage_class.name, list(self._to_retry.get(storage_class.name, ()))
        if storage_class.missing:
            with suppress(CatalogUnavailable):
                disks = await self._catalog.read(lambda tx: tx.disks.at_rest(name))
                gone = [disk for disk in disks if disk in storage_class.missing]
                lines += [f"{disks[disk]}: its LV {disk} is gone" for disk in gone]
        return lines

    async def start(self) -> None:
        """Before anything else: set up what can be had."""
        for storage_class in self._classes:
            await self._set_up(storage_class)

    async def run(self) -> None:
        """Set up again what trouble took, until cancelled; the daemon owns this."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_catalog())
            for storage_class in self._classes:
                group.create_task(self._keep(storage_class))

    async def _keep_catalog(self) -> None:
        while True:
            await self._catalog.heal()
            log.info("the catalog can be written again")
            self._recover()

    async def _keep(self, storage_class: StorageClass) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                again = bool(self._to_retry[storage_class.name])
                async with asyncio.timeout(retry_s if again else None):
                    await storage_class.driver.amiss()
                retry_s = _FIRST_RETRY_S
            except TimeoutError:
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
            try:
                async with storage_class.driver.turn():
                    await self._set_up(storage_class)
                    await self._take_back(storage_class)
            except Exception as err:
                log.exception("setting up again failed", storage_class=storage_class.name)
                why = str(err) or type(err).__name__
                self.problems[storage_class.name] = self._to_retry[storage_class.name] = [why]

    async def _take_back(self, storage_class: StorageClass) -> None:
        """Remove what was set up for a volume that was being deleted, which needs no turn."""
        deleting = set(storage_class.deleting)  # before the rows: it is left after the commit
        rows = await self._catalog.read(partial(_wanted, storage_class))
        wanted = {front.volume_id for front in rows.fronts} - deleting
        for volume_id in self._set_up_for[storage_class.name] - wanted:
            with suppress(InUse):
                await storage_class.driver.disconnect(volume_id)

    async def _set_up(self, storage_class: StorageClass) -> None:
        name, driver = storage_class.name, storage_class.driver
        there = await driver.disks()
        wanted = await self._catalog.read(partial(_wanted, storage_class))
        missing = {disk: whose for disk, whose in wanted.disks.items() if disk not in there}
        before, storage_class.missing = storage_class.missing, frozenset(missing)
        # What is not there is not looked for each time: the driver hears of its return.
        fronts = [front for front in wanted.fronts if front.disk not in missing]
        self._set_up_for[name] = {front.volume_id for front in fronts}
        hidden = [disk for disk in wanted.hidden if disk not in missing]
        self._to_retry[name] = list(await driver.start(fronts, hidden))
        try:
            await tell_of_missing(self._catalog, storage_class, before)
        except CatalogUnavailable as err:
            self._to_retry[name] = [*self._to_retry[name], f"disks gone or back not told: {err}"]
        problems = [f"{whose}: its LV {disk} is gone" for disk, whose in missing.items()]
        problems += self._to_retry[name]
        known = self.problems.get(name, ())
        for problem in problems:
            if problem not in known:
                log.error("not available", problem=problem)
        if known and not problems:
            log.info("all is available again", storage_class=name)
        self.problems[name] = problems
        self._recover()

    def _recover(self) -> None:
        for recovered in self.recovered:
            recovered()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the catalog says shall be there.

    Attributes:
        fronts: those that shall be up.
        hidden: disks that have none but are needed all the same.
        disks: every disk at rest, and whose it is.
    """

    fronts: list[FrontSpec]
    hidden: list[str]
    disks: dict[str, str]


def _wanted(storage_class: StorageClass, tx: Transaction) -> _Wanted:
    volumes, disks = (
        tx.volumes_with_fronts(storage_class.name),
        tx.disks.at_rest(storage_class.name),
    )
    shown = [front_of_snapshot(row) for row in tx.attached_snapshots(storage_class.name)]
    if not storage_class.is_thick:
        return _Wanted([*map(front_of, volumes), *shown], [], disks)
    reverting = tx.disks.reverting(storage_class.name)
    fronts = [front_of(volume) for volume in volumes if volume.id not in reverting]
    return _Wanted([*fronts, *shown], tx.disks.hidden(storage_class.name), disks)
