"""Telling the events of volumes that are opened and closed, which is no change of a row.

The kernel tells nobody when a device is opened. But mounts are told of (`host/mounts.py`), so that
after each the open counts are looked at: one ioctl for each volume at rest. An open without a mount
is seen with the next look, within `LOOK_S`; whoever asks for the volume sees it at once.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import BlockdError
from blockd.domain.event import EventKind
from blockd.domain.states import AVAILABLE, seen_status
from blockd.domain.volume import Volume
from blockd.service.classes import StorageClasses

log = structlog.get_logger()

LOOK_S: Final = 10.0
#: Between two looks: a host of containers mounts all day long.
_REST_S: Final = 0.2


class UseWatch:
    """Remembers of which volumes it was told that they are open."""

    def __init__(self, catalog: Catalog, classes: StorageClasses) -> None:
        self._catalog, self._classes = catalog, classes
        self._changed = asyncio.Event()
        self._open: dict[str, bool] | None = None  # None: before the first look
        self._rows: list[Volume] = []
        self._generation = -1

    def changed(self) -> None:
        """Something was mounted, or unmounted, somewhere."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except BlockdError as err:
                log.warning("which volumes are open is not told", reason=str(err))
            except Exception:
                log.exception("which volumes are open is not told")
            await asyncio.sleep(_REST_S)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Look at all volumes, and tell of those that are seen otherwise than the last time.

        Raises:
            CatalogUnavailable: it cannot be read, or written.
        """
        self._changed.clear()  # what happens from here on is looked at again
        if self._generation != (now := self._catalog.generation):
            self._rows = await self._catalog.read(self._at_rest)
            self._generation = now
        # What has lost its disk is in error (`missing_told.py`), whoever holds what is left of it.
        rows = [row for row in self._rows if self._classes.why_missing(row) is None]
        seen = {row.id: self._classes.is_open(row.storage_class, row.id) for row in rows}
        # What has come to rest since was told of as available. What is open at the start was so.
        before = seen if self._open is None else self._open
        news = [row for row in rows if before.get(row.id, False) != seen[row.id]]
        if news:
            ids = [row.id for row in news]
            await self._catalog.write("use told", lambda tx: _tell(tx, ids, seen))
        self._open = seen  # not before: what could not be told is told with the next look

    def _at_rest(self, tx: Transaction) -> list[Volume]:
        return [
            row
            for storage_class in self._classes
            for row in tx.volumes_with_fronts(storage_class.name)
            if row.status is AVAILABLE
        ]


def _tell(tx: Transaction, volume_ids: list[str], is_open: dict[str, bool]) -> None:
    for volume_id in volume_ids:
        volume = tx.volume(volume_id)
        # One that is not at rest any more has had its own event; a guest's is in use in any case.
        if volume is not None and volume.status is AVAILABLE and not volume.attachments:
            status = seen_status(AVAILABLE, is_open=is_open[volume_id])
            tx.events.tell(EventKind.VOLUME, volume_id, volume.project_id, status)
