"""The devices of snapshots that guests read: there for as long as an attachment names them.

The rows of `attachments` say which shall be there, also at start (`upkeep.py`). Whoever changes
rows has the device settled after it; what cannot be is tried again, each by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Final

import structlog

from blockd.catalog import Catalog
from blockd.domain.errors import BlockdError, TransientState
from blockd.domain.front import FrontSpec
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import AVAILABLE, EXPORTING
from blockd.service.classes import StorageClasses

log = structlog.get_logger()

#: A host process may look at the device just when its guest lets go of it.
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 60.0
#: Of one class, by `run`: a start may have thousands to look at, and whoever asks for a turn waits
#: behind no more of them than so.
_MOST_AT_ONCE: Final = 4


def front_of_snapshot(snapshot: Snapshot) -> FrontSpec:
    """The front that the catalog says an attached snapshot has."""
    return FrontSpec(snapshot.id, snapshot.disk, snapshot.size_bytes, is_read_only=True)


class ShownSnapshots:
    """Makes the devices, and takes them away."""

    def __init__(self, catalog: Catalog, classes: StorageClasses) -> None:
        self._catalog, self._classes = catalog, classes
        self._left: set[str] = set()
        self._more = asyncio.Event()
        # What `run` is at: set when it is asked for anew.
        self._under_way: dict[str, asyncio.Event] = {}
        self._places = {one.name: asyncio.Semaphore(_MOST_AT_ONCE) for one in classes}

    async def show(self, snapshot: Snapshot) -> None:
        """Make its device, once a row of `attachments` says that it shall be there.

        Raises:
            StorageBusy: its class's turn did not come in time.
            StorageError: it cannot be made readable.
            TransientState: the row is gone.
        """
        storage_class = self._classes[snapshot.storage_class]
        async with storage_class.turn_soon():
            if not await self._catalog.read(lambda tx: tx.attachments.of(snapshot.id)):
                raise TransientState("snapshot", snapshot.id, "changing")
            await storage_class.driver.connect(front_of_snapshot(snapshot))

    async def settle(self, resource_id: str) -> None:
        """Make, or take away, a snapshot's device as the rows say; tried again if that fails.

        Volumes are passed over.
        """
        if not await self._is_settled(resource_id):
            self.settle_soon(resource_id)

    def settle_soon(self, resource_id: str) -> None:
        """The same, by `run`."""
        self._left.add(resource_id)
        self._more.set()

    async def run(self) -> None:
        """Settle what is to be settled, until cancelled: each by itself, whatever holds others."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._more.wait()
                self._more.clear()
                for resource_id in sorted(self._left):
                    asked = self._under_way.get(resource_id)
                    if asked is None:
                        asked = self._under_way[resource_id] = asyncio.Event()
                        settling = self._settle_in_line(resource_id, asked)
                        group.create_task(settling, name=f"device of {resource_id}")
                    asked.set()
                self._left.clear()

    async def _settle_in_line(self, resource_id: str, asked: asyncio.Event) -> None:
        """Until it is as the rows say; once more if it is asked for anew meanwhile."""
        retry_s = _FIRST_RETRY_S
        try:
            while asked.is_set():
                # First: the rows may change, and this be asked for anew, while it looks.
                asked.clear()
                if await self._is_settled(resource_id, self._places):
                    continue
                try:
                    async with asyncio.timeout(retry_s):
                        await asked.wait()
                    retry_s = _FIRST_RETRY_S
                except TimeoutError:
                    retry_s = min(retry_s * 2, _LAST_RETRY_S)
                    asked.set()
        finally:
            del self._under_way[resource_id]

    async def _is_settled(
        self, resource_id: str, places: Mapping[str, asyncio.Semaphore] | None = None
    ) -> bool:
        """Whether it could be; with `places`, in one of its class's."""
        try:
            snapshot = await self._catalog.read(lambda tx: tx.snapshot(resource_id))
            if snapshot is None:
                return True
            async with nullcontext() if places is None else places[snapshot.storage_class]:
                await self._settle(snapshot)
        except BlockdError as err:
            log.info("a snapshot's device is not as it shall be", reason=str(err))
            return False
        except Exception:
            log.exception("a snapshot's device is not as it shall be")
            return False
        return True

    async def _settle(self, snapshot: Snapshot) -> None:
        if await self._is_right(snapshot):
            return
        driver = self._classes[snapshot.storage_class].driver
        async with self._classes[snapshot.storage_class].turn_soon():
            now = await self._catalog.read(lambda tx: tx.snapshot(snapshot.id))
            if now is None or await self._is_right(now):
                return
            if _is_wanted(now):
                await driver.connect(front_of_snapshot(now))
            else:
                await driver.hide(now.id)

    async def _is_right(self, snapshot: Snapshot) -> bool:
        driver = self._classes[snapshot.storage_class].driver
        is_shown = await driver.disk_behind(snapshot.id) is not None
        return is_shown is _is_wanted(snapshot)


def _is_wanted(snapshot: Snapshot) -> bool:
    """As `Transaction.attached_snapshots` has it."""
    return bool(snapshot.attachments) and snapshot.status in (AVAILABLE, EXPORTING)
