"""Snapshots under a writer that does not pause: each is one instant, and the right one."""

from __future__ import annotations

import asyncio

import pytest

from blockd.domain.units import MIB
from tests.contract.storage import Storage
from tests.contract.writer import instant, writing
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = MIB
DEADLINE_S = 60


async def test_snapshots_under_a_writer_hold_each_exactly_one_instant(storage: Storage) -> None:
    front = await storage.volume(SIZE)
    taken: list[tuple[int, str, int]] = []
    async with asyncio.timeout(DEADLINE_S), writing(storage, front) as writer:
        await writer.reaches(300)  # the second round: old and new blocks side by side
        for _ in range(5):
            before = writer.position
            snapshot = await storage.snapshot(front)
            taken.append((before, snapshot, writer.position))
            await writer.reaches(writer.position + 50)  # it goes on being written
    for before, snapshot, after in taken:
        clone = await storage.clone(snapshot, SIZE)
        with stamps.opened(storage.path(clone)) as device:
            position = instant(device.generations())
        # One block may be on the disk that the writer has not counted yet.
        assert before <= position <= after + 1


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
