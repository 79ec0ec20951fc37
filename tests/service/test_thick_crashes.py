"""A crash at every side effect and every commit of every verb of a thick class.

The verb runs once, unharmed; at each event the directory with catalog and disks is copied, which is
what a killed daemon leaves. Each copy is then started as the next daemon finds it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blockd.config import Config
from blockd.domain.effects import SideEffects
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import Status
from blockd.domain.volume import Volume
from tests.service.thick_rig import NEW, OLD, SIZE, Thick
from tests.support import stamps
from tests.support.service import file_config, running
from tests.support.thick_files import ThickFileDriver

GROWN = 5 * SIZE  # beyond the first extent


class Images(SideEffects):
    """Copies the directory at every event, once armed."""

    def __init__(self, root: Path, images: Path) -> None:
        self._root, self._images = root, images
        self.armed = False
        self.events: list[str] = []
        self.taken: dict[int, str] = {}
        self._seen: object = None

    def before(self, name: str) -> None:
        self._take(f"before {name}")

    def after(self, name: str) -> None:
        self._take(f"after {name}")

    def _take(self, event: str) -> None:
        if not self.armed:
            return
        number = len(self.events)
        self.events.append(event)
        seen = self._state()
        if seen == self._seen:
            return  # nothing has changed since the event before
        self._seen, self.taken[number] = seen, event
        image = self._images / str(number)
        subprocess.run(["cp", "-a", "--sparse=always", self._root, image], check=True)
        (image / "catalog.sqlite-shm").unlink(missing_ok=True)
        for link in (image / "bssd" / "dev").iterdir():  # they lead to the disks of this image
            disk = link.readlink().name
            link.unlink()
            link.symlink_to(image / "bssd" / "disks" / disk)

    def _state(self) -> object:
        """What tells that a file was written, made, or removed."""
        files = sorted(path for path in self._root.rglob("*") if path.name != "catalog.sqlite-shm")
        return [
            (path, found.st_size, found.st_mtime_ns, found.st_ino)
            for path in files
            for found in [path.lstat()]
        ]


@dataclass
class Before:
    """What there was before the verb."""

    volume: Volume
    snapshot: Snapshot
    more: list[Snapshot] = field(default_factory=list)


Verb = Callable[[Thick, Before], Awaitable[object]]
Check = Callable[[Thick, Before], Awaitable[None]]


async def create(rig: Thick, _: Before) -> None:
    await rig.volume(name="made")


async def check_create(rig: Thick, before: Before) -> None:
    for volume in await made(rig):
        await rig.expect(volume, 0)
    await check_whole(rig, before)


async def clone(rig: Thick, before: Before) -> None:
    await rig.volume(GROWN, of=before.snapshot.id, name="made")


async def check_clone(rig: Thick, before: Before) -> None:
    for volume in await made(rig):
        path = await rig.path(volume)
        assert os.path.getsize(path) == GROWN
        stamps.expect(path, OLD, 0, SIZE // 4096 * 4096)
        stamps.expect(path, 0, SIZE // 4096 * 4096 + 4096)
    await check_whole(rig, before)


async def grow(rig: Thick, before: Before) -> None:
    await rig.settled(await rig.grow(before.volume, GROWN))


async def check_grow(rig: Thick, before: Before) -> None:
    row = await rig.run.service.volumes.get(before.volume.id)
    assert row.size_bytes in (SIZE, GROWN)
    path = await rig.path(row)
    assert os.path.getsize(path) == row.size_bytes
    stamps.expect(path, NEW, 0, SIZE // 4096 * 4096)
    if row.size_bytes == GROWN:
        stamps.expect(path, 0, SIZE // 4096 * 4096 + 4096)
    await rig.expect_snapshot(before.snapshot, OLD)


async def take(rig: Thick, before: Before) -> None:
    await rig.snapshot(before.volume, "made")


async def check_take(rig: Thick, before: Before) -> None:
    _, snapshots = await rig.rows()
    for snapshot in snapshots:
        if snapshot.name == "made":
            await rig.expect_snapshot(snapshot, NEW)
    await check_whole(rig, before)


async def revert(rig: Thick, before: Before) -> None:
    volume, snapshot = before.volume, before.snapshot
    await rig.settled(await rig.run.service.volumes.revert(volume.id, snapshot.id, True))


async def revert_for_good(rig: Thick, before: Before) -> None:
    volume, snapshot = before.volume, before.snapshot
    await rig.settled(await rig.run.service.volumes.revert(volume.id, snapshot.id, False))


async def check_revert(rig: Thick, before: Before) -> None:
    """Old content or new, never a mixture, and what was kept if it is the new one."""
    row = await rig.run.service.volumes.get(before.volume.id)
    assert (row.status, row.error) == (Status.AVAILABLE, None)
    try:
        await rig.expect(row, OLD)
    except AssertionError:
        await rig.expect(row, NEW)
    else:
        before.more.append(before.snapshot)  # tells the test that this outcome was seen
    known = {before.snapshot.id}
    for snapshot in (await rig.rows())[1]:
        if snapshot.id not in known:
            await rig.expect_snapshot(snapshot, NEW)
    await rig.expect_snapshot(before.snapshot, OLD)


async def delete(rig: Thick, before: Before) -> None:
    await rig.run.service.volumes.delete(before.volume.id)
    await rig.idle()


async def check_delete(rig: Thick, before: Before) -> None:
    volumes, _ = await rig.rows()
    for volume in volumes:
        if volume.id == before.volume.id and volume.status is Status.AVAILABLE:
            await rig.expect(volume, NEW)
    await rig.expect_snapshot(before.snapshot, OLD)


async def delete_both(rig: Thick, before: Before) -> None:
    await rig.run.service.volumes.delete(before.volume.id)
    await rig.run.service.snapshots.delete(before.snapshot.id)
    await rig.idle()


async def check_delete_both(rig: Thick, before: Before) -> None:
    volumes, snapshots = await rig.rows()
    if before.snapshot.id in {snapshot.id for snapshot in snapshots}:
        await rig.expect_snapshot(before.snapshot, OLD)
    if not volumes and not snapshots:
        await rig.idle()
        assert await rig.driver.disks() == {}


async def made(rig: Thick) -> list[Volume]:
    volumes, _ = await rig.rows()
    found = [volume for volume in volumes if volume.name == "made"]
    assert len(found) <= 1
    assert all((row.status, row.error) == (Status.AVAILABLE, None) for row in found), found
    return found


async def check_whole(rig: Thick, before: Before) -> None:
    await rig.expect(before.volume, NEW)
    await rig.expect_snapshot(before.snapshot, OLD)


VERBS: dict[str, tuple[Verb, Check]] = {
    "create": (create, check_create),
    "clone": (clone, check_clone),
    "grow": (grow, check_grow),
    "snapshot": (take, check_take),
    "revert": (revert, check_revert),
    "revert for good": (revert_for_good, check_revert),
    "delete": (delete, check_delete),
    "delete both": (delete_both, check_delete_both),
}
#: Fewer events than this, and a verb has lost some of what it does, or announces it no more. What
#: comes after the last commit may be told when all is idle again already.
LEAST_EVENTS = {"create": 7, "clone": 7, "grow": 6, "snapshot": 4, "revert": 16, "delete both": 7}


@pytest.mark.parametrize("name", VERBS)
async def test_crash_anywhere_leaves_the_old_or_the_new_and_an_empty_journal(
    tmp_path: Path, name: str
) -> None:
    verb, check = VERBS[name]
    root = tmp_path / "root"
    images = Images(root, tmp_path)
    config = config_of(root)
    driver = ThickFileDriver(root / "bssd", effects=images)
    async with running(
        root, driver=driver, config=config, effects=images, default_class="bssd"
    ) as run:
        rig = Thick(run, driver)
        before = Before(*await rig.stamped())
        await rig.idle()
        images.armed = True
        await verb(rig, before)
        await rig.idle()
        images.armed = False
    assert len(images.events) >= LEAST_EVENTS.get(name, 4), images.events
    outcomes = set()
    assert images.taken
    for number, event in images.taken.items():
        image = tmp_path / str(number)
        try:
            outcomes.add(await look(image, before, check))
        except BaseException as error:
            error.add_note(f"after a crash at event {number}, {event}, of {images.events}")
            raise
        shutil.rmtree(image)
    if check is check_revert:
        assert outcomes == {False, True}, "only one of both contents was ever found"


async def look(image: Path, before: Before, check: Check) -> bool:
    """Start the next daemon, and see what it makes of it; whether the check says it is new."""
    driver = ThickFileDriver(image / "bssd")
    before = Before(before.volume, before.snapshot)
    async with running(image, driver=driver, config=config_of(image), default_class="bssd") as run:
        rig = Thick(run, driver)
        needed = {snapshot.origin_disk for snapshot in (await rig.rows())[1]}
        assert not needed & driver.never_activated, "an origin was not activated at the start"
        await rig.idle()
        await check(rig, before)
        await rig.idle()
        await rig.expect_agreement()
        after = await rig.volume(name="after")  # no wedge
        await rig.expect(after, 0)
        await rig.run.service.volumes.delete(after.id)
        await rig.expect_agreement()
    return bool(before.more)


def config_of(root: Path) -> Config:
    config = file_config(root)
    trash = config.trash.model_copy(update={"keep": 0.0})
    return config.model_copy(update={"trash": trash})
