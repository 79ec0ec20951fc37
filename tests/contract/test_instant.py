"""Under a writer that does not pause each snapshot is one instant, and nothing written is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from blockd.domain.units import MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import LvmStorage, Storage
from tests.contract.writer import Writer, instant, writing
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE, GROWN = MIB, 6 * MIB  # beyond an extent
DEADLINE_S = 60


async def test_writes_before_the_snapshot_are_in_it_and_later_ones_are_not(
    storage: Storage,
) -> None:
    """The page cache is no hiding place: what was fsynced before is in the picture."""
    front = await storage.volume(SIZE, generation=1)
    with stamps.opened(storage.path(front), write=True) as device:
        device.write(2, 0, SIZE // 2)
        snapshot = await storage.snapshot(front)
        device.write(3, SIZE // 2)
    clone = await storage.clone(snapshot, SIZE)
    with stamps.opened(storage.path(clone)) as device:
        device.expect(2, 0, SIZE // 2)
        device.expect(1, SIZE // 2)


class Pictures:
    """Snapshots of a front that is being written, each with what the writer had done around it."""

    def __init__(self, storage: Storage, writer: Writer) -> None:
        self._storage, self._writer = storage, writer
        self._around: dict[str, tuple[int, int]] = {}

    async def take(self, front: FrontSpec) -> str:
        """One more."""
        before = self._writer.position
        snapshot = await self._storage.snapshot(front)
        self._around[snapshot] = (before, self._writer.position + 1)  # one may not be counted yet
        return snapshot

    async def erase(self, snapshot: str) -> None:
        """One less."""
        await self._storage.erase(snapshot)
        del self._around[snapshot]

    async def expect_all(self) -> None:
        """Each is the instant at which it was taken."""
        for snapshot in self._around:
            await self.expect(snapshot)

    async def expect(self, snapshot: str) -> None:
        """As an export reads it."""
        async with self._storage.driver.reading(snapshot) as disk:
            self._expect(snapshot, await self._storage.apart(lambda: _generations(disk.path)))

    def expect_copy(self, snapshot: str, front: FrontSpec) -> None:
        """A clone holds the same instant."""
        self._expect(snapshot, _generations(self._storage.path(front)))

    def _expect(self, snapshot: str, generations: list[int]) -> None:
        first, last = self._around[snapshot]
        assert first <= instant(generations) <= last


def _generations(path: str | Path) -> list[int]:
    with stamps.opened(path) as device:
        return device.generations(0, SIZE)


async def test_writer_loses_nothing_during_any_operation_and_snapshots_stay_one_instant(
    storage: Storage,
) -> None:
    front, other = await storage.volume(SIZE), await storage.volume(SIZE, generation=1)
    of_other = await storage.snapshot(other)
    await storage.apart(lambda: stamps.stamp(storage.path(other), 2))
    async with asyncio.timeout(DEADLINE_S), writing(storage, front) as writer:
        pictures = Pictures(storage, writer)

        @asynccontextmanager
        async def going_on(what: str) -> AsyncIterator[None]:
            """The writer moves before, during and after what is done in the block."""
            await writer.reaches(writer.position + 50)
            began = writer.position
            try:
                yield
            except Exception as error:
                error.add_note(f"during {what}")
                raise
            # Files are written between two steps of the driver, of which some have but one.
            assert writer.position > began or not isinstance(storage, LvmStorage), what
            await writer.reaches(writer.position + 50)

        await writer.reaches(300)
        first, sibling = await pictures.take(front), await pictures.take(front)
        async with going_on("an export"):
            await pictures.expect(first)
        async with going_on("a clone"):
            pictures.expect_copy(first, await storage.clone(first, SIZE))
        async with going_on("the erasing of a sibling"):
            await pictures.erase(sibling)
        await pictures.take(front)
        async with going_on("growth"):
            front = await storage.grow(front, GROWN)
        await pictures.take(front)
        async with going_on("the revert of another volume"):
            other = await storage.revert(other, of_other, SIZE)
        await pictures.take(front)
        async with going_on("the deletion of another volume"):
            await storage.drop(other)
            await storage.erase(of_other, *([other.disk] if storage.is_thick else []))
        await pictures.take(front)
    await pictures.expect_all()
    with stamps.opened(storage.path(front)) as device:
        assert instant(device.generations(0, SIZE)) == writer.position
        device.expect(0, SIZE, GROWN)
