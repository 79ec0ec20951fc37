"""Keeping fronts and disks as the catalog says, through trouble that is none of our making.

What cannot be had at start, or is lost later, is tried again until it can: no restart is needed
when the trouble ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import InUse
from blockd.domain.front import FrontSpec
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.steps import front_of

log = structlog.get_logger()

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0


class Upkeep:
    """`problems` holds, by class, a line for each thing that cannot be had now."""

    def __init__(self, catalog: Catalog, classes: StorageClasses) -> None:
        self._catalog, self._classes = catalog, classes
        self.problems: dict[str, Sequence[str]] = {}
        self._set_up_for: dict[str, set[str]] = {}

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

    async def _keep(self, storage_class: StorageClass) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                is_amiss = bool(self.problems[storage_class.name])
                async with asyncio.timeout(retry_s if is_amiss else None):
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
                self.problems[storage_class.name] = [str(err) or type(err).__name__]

    async def _take_back(self, storage_class: StorageClass) -> None:
        """Remove what was set up for a volume that was being deleted, which needs no turn."""
        deleting = set(storage_class.deleting)  # before the rows: it is left after the commit
        fronts, _ = await self._catalog.read(partial(_wanted, storage_class))
        wanted = {front.volume_id for front in fronts} - deleting
        for volume_id in self._set_up_for[storage_class.name] - wanted:
            with suppress(InUse):
                await storage_class.driver.disconnect(volume_id)

    async def _set_up(self, storage_class: StorageClass) -> None:
        fronts, hidden = await self._catalog.read(partial(_wanted, storage_class))
        self._set_up_for[storage_class.name] = {front.volume_id for front in fronts}
        problems = list(await storage_class.driver.start(fronts, hidden))
        known = self.problems.get(storage_class.name, ())
        for problem in problems:
            if problem not in known:
                log.error("not available", problem=problem)
        if known and not problems:
            log.info("all is available again", storage_class=storage_class.name)
        self.problems[storage_class.name] = problems


def _wanted(storage_class: StorageClass, tx: Transaction) -> tuple[list[FrontSpec], list[str]]:
    """The fronts that shall be up, and the disks that have none but are needed all the same."""
    volumes = tx.volumes_with_fronts(storage_class.name)
    if not storage_class.is_thick:
        return [front_of(volume) for volume in volumes], []
    reverting = tx.disks.reverting(storage_class.name)
    fronts = [front_of(volume) for volume in volumes if volume.id not in reverting]
    return fronts, tx.disks.hidden(storage_class.name)
