"""What runs in the guest before and after a power cut in the middle of a merge.

    python -m tests.faults.merge_guest marked|merging|end

`marked` cuts the power when LVM has noted the merge and the kernel has not begun it, `merging` when
the kernel is in the middle of it; `end` starts on what is left, as the daemon would.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from blockd.domain.front import FrontSpec
from blockd.domain.transfer import Progress
from blockd.domain.units import MIB
from blockd.storage.lvm_thick import LvmThick
from tests.contract.lab_drivers import open_thick
from tests.contract.storage import ThickStorage
from tests.support import stamps

DISK = Path("/dev/ubda")
SIZE = 256 * MIB
VOLUME = "00000000-0000-4000-8000-000000000001"
ORIGIN, SNAPSHOT, SIBLING = (f"blockd-00000000-0000-4000-8000-00000000001{n}" for n in range(3))
DEADLINE_S = 120


async def cut(driver: LvmThick, storage: ThickStorage, when: str) -> None:
    """A volume of generation 3, snapshots of 1 and 2; a merge of the first; and the cut."""
    await storage.create(SIZE, ORIGIN)
    front = FrontSpec(VOLUME, ORIGIN, SIZE)
    path = await storage.connect(front)
    for generation, snapshot in ((1, SNAPSHOT), (2, SIBLING)):
        stamps.stamp(path, generation)
        await storage.snapshot(front, snapshot)
        async with driver.turn():
            await driver._revert.extend_store(snapshot, driver._sizes.ceiling(SIZE))
    stamps.stamp(path, 3)
    await storage.disconnect(front)
    async with driver.turn():
        await driver.reserve_for_revert(ORIGIN, SNAPSHOT)
        info = driver._info(ORIGIN)
        assert info is not None
        if when == "marked":
            await driver._revert._mark(info, SNAPSHOT)
            pull_the_plug()
        await driver.begin_merge(ORIGIN, SNAPSHOT)
    _, begun = await driver._watch.ask(info.uuid)
    while True:
        _, status = await driver._watch.ask(info.uuid)
        assert status.data_bytes > 0, f"done before it could be cut: {begun}"
        if status.data_bytes < SIZE // 2:
            print(f"cut with {status.data_bytes >> 20} MiB left to merge", flush=True)
            pull_the_plug()


def pull_the_plug() -> None:
    """Nothing is written back."""
    Path("/proc/sysrq-trigger").write_text("c")


async def check(driver: LvmThick, storage: ThickStorage) -> None:
    """The disk reads as the snapshot did, at once and when it is merged; the sibling is whole."""
    assert set(await driver.disks()) == {ORIGIN, SIBLING}
    async with asyncio.timeout(DEADLINE_S):
        async with driver.writing(ORIGIN) as disk:
            stamps.expect(disk.path, 1, 0, SIZE)
        async with driver.turn():
            await driver.begin_merge(ORIGIN, SNAPSHOT)
        await driver.merged(ORIGIN, Progress())
    async with driver.turn():
        await driver.end_merge(ORIGIN, SNAPSHOT)
        await driver.snapshot(SNAPSHOT, ORIGIN, None)
    front = FrontSpec(VOLUME, ORIGIN, SIZE)
    stamps.expect(await storage.connect(front), 1)
    for generation, snapshot in ((1, SNAPSHOT), (2, SIBLING)):
        async with driver.reading(snapshot) as disk:
            stamps.expect(disk.path, generation, 0, SIZE)
    await storage.disconnect(front)
    await storage.clean()
    assert not await driver.disks()


async def main(step: str) -> None:
    """One of the two boots."""
    hidden = [ORIGIN] if step == "end" else []
    async with open_thick(DISK, is_fresh=not hidden, hidden=hidden) as storage:
        assert isinstance(storage.driver, LvmThick)
        if step == "end":
            await check(storage.driver, storage)
        else:
            await cut(storage.driver, storage, step)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
