"""Finding the snapshots that are to be watched; what cannot be watched is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import structlog

from blockd.domain.errors import StorageError
from blockd.storage.cow_watch import CowWatch
from blockd.storage.dm import DeviceInfo
from blockd.storage.lvm_report import LogicalVolume

log = structlog.get_logger()

_AGAIN_S = 30.0


class CowFinding:
    """The snapshots of one class, as LVM lists them."""

    def __init__(
        self,
        watch: CowWatch,
        lvs: Callable[[], Awaitable[list[LogicalVolume]]],
        is_ours: Callable[[LogicalVolume], bool],
        info: Callable[[str], DeviceInfo | None],
        turn: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        """`info` is the device of a disk, if it is active."""
        self._watch, self._lvs, self._is_ours, self._info = watch, lvs, is_ours, info
        self._turn = turn
        self._missed = asyncio.Event()

    async def find(self) -> list[str]:
        """Watch every snapshot of ours that is there: one process. Within a turn, or at start.

        Returns:
            A line for each that is not watched. The others are, and those are tried again.
        """
        problems = []
        try:
            lvs = await self._lvs()
        except StorageError as err:
            lvs = []
            problems.append(f"no snapshot is watched: {err}")
        for lv in lvs:
            if lv.origin and self._is_ours(lv) and not lv.is_merging:
                try:
                    info = self._info(lv.name)
                    if info is not None and not self._watch.knows(lv.name):
                        await self._watch.add(lv.name, info.uuid)
                except (StorageError, ValueError) as err:
                    problems.append(f"snapshot {lv.name} is not watched: {err}")
        if problems:
            self._missed.set()
        else:
            self._missed.clear()
        return problems

    async def run(self) -> None:
        """Try again what could not be watched, until cancelled."""
        while True:
            await self._missed.wait()
            await asyncio.sleep(_AGAIN_S)
            async with self._turn():
                for problem in await self.find():
                    log.warning("a snapshot's store is not watched", reason=problem)
