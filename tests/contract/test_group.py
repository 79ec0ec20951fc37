"""Snapshots of several volumes at one instant; a failure leaves none, and nothing stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.group import Picture
from blockd.domain.units import MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import Storage
from tests.support import stamps
from tests.support.in_turn import instant, place
from tests.support.stamps import BLOCK_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 1 * MIB
DEADLINE_S = 240


def pictures_of(storage: Storage, fronts: Sequence[FrontSpec]) -> list[Picture]:
    return [Picture(storage.name(), front.disk, front.volume_id) for front in fronts]


async def take(storage: Storage, pictures: Sequence[Picture]) -> int:
    """As the service does, for one class; how many milliseconds the fronts stood still."""
    volume_ids = [picture.volume_id for picture in pictures]
    async with storage.driver.turn(), storage.driver.taking(pictures) as taking:
        began = time.monotonic()
        async with storage.driver.still(volume_ids):
            await taking()
        return round((time.monotonic() - began) * 1000)


class Writer:
    """Writes to all fronts in turn between the driver's steps, or while they go on."""

    def __init__(self, storage: Storage, fronts: Sequence[FrontSpec]) -> None:
        self.position, self.stopping = 0, False
        self._storage, self._fronts = storage, fronts

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            devices = [
                stack.enter_context(stamps.opened(self._storage.path(front), write=True))
                for front in self._fronts
            ]
            while not self.stopping:
                position = self.position

                def write(position: int = position) -> None:
                    volume, block = place(position, len(devices), SIZE // BLOCK_BYTES)
                    start = block * BLOCK_BYTES
                    devices[volume].write(position + 1, start, start + BLOCK_BYTES)

                await self._storage.apart(write)
                self.position += 1

    async def reaches(self, position: int) -> None:
        while self.position < position:
            await asyncio.sleep(0)


@asynccontextmanager
async def writing(storage: Storage, fronts: Sequence[FrontSpec]) -> AsyncIterator[Writer]:
    writer = Writer(storage, fronts)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        writer.stopping = True
        await task


async def held(storage: Storage, disk: str) -> list[int]:
    def read(path: str) -> list[int]:
        with stamps.opened(path) as device:
            return device.generations(0, SIZE)

    async with storage.driver.reading(disk) as opened:
        return await storage.apart(lambda: read(opened.path))


@pytest.mark.parametrize("count", [2, 8])
async def test_group_under_a_writer_that_goes_from_volume_to_volume_is_one_instant(
    storage: Storage, count: int
) -> None:
    fronts = [await storage.volume(SIZE) for _ in range(count)]
    groups: list[tuple[int, list[Picture], int]] = []
    async with asyncio.timeout(DEADLINE_S), writing(storage, fronts) as writer:
        for turn in range(3):
            await writer.reaches(writer.position + 100)
            pictures, before = pictures_of(storage, fronts), writer.position
            suspended_ms = await take(storage, pictures)
            print(f"group {turn + 1} of {count} volumes: suspended {suspended_ms} ms")
            groups.append((before, pictures, writer.position + 1))  # one may not be counted yet
        await writer.reaches(writer.position + 100)
    for before, pictures, after in groups:
        contents = [await held(storage, picture.disk) for picture in pictures]
        assert before <= instant(contents) <= after


async def test_group_that_fails_in_the_fifth_of_eight_is_undone_and_nothing_stands_still(
    storage: Storage,
) -> None:
    fronts = [await storage.volume(SIZE, generation=1) for _ in range(8)]
    pictures = pictures_of(storage, fronts)
    await storage.make_foreign(pictures[4].disk)  # so that name is taken
    with pytest.raises(StorageError):
        await take(storage, pictures)
    made = {picture.disk for picture in pictures[:4]}
    assert made <= set(await storage.driver.disks()), "it was to fail in the fifth"
    async with asyncio.timeout(DEADLINE_S):
        for front in fronts:
            await storage.apart(partial(stamps.stamp, storage.path(front), 2))
    async with storage.driver.turn():
        assert await storage.driver.undo(pictures)
    assert set(await storage.driver.disks()) == {front.disk for front in fronts}
    await storage.expect_foreign(pictures[4].disk)


async def test_group_over_what_an_earlier_attempt_left_is_undone_and_holds_the_new_instant(
    storage: Storage,
) -> None:
    fronts = [await storage.volume(SIZE, generation=1) for _ in range(3)]
    pictures = pictures_of(storage, fronts)
    await storage.snapshot(fronts[1], pictures[1].disk)
    for front in fronts:
        stamps.stamp(storage.path(front), 2)
    with pytest.raises(StorageError):
        await take(storage, pictures)
    async with storage.driver.turn():
        assert await storage.driver.undo(pictures)
        assert not await storage.driver.undo(pictures)
    await take(storage, pictures)
    for picture in pictures:
        assert set(await held(storage, picture.disk)) == {2}


async def test_group_of_volumes_whose_fronts_are_down_holds_their_bytes(storage: Storage) -> None:
    fronts = [await storage.volume(SIZE, generation=1) for _ in range(2)]
    await storage.disconnect(fronts[1])
    pictures = pictures_of(storage, fronts)
    await take(storage, pictures)
    for picture in pictures:
        assert set(await held(storage, picture.disk)) == {1}
