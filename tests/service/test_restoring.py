"""The catalog is lost at every moment of every verb, and an older copy of it meets the disks.

Each verb runs once; at each of its side effects and commits the directory with catalog, its copy
and disks is kept. Then the catalog of an earlier moment is put in the place of the one of a later,
no older than what the copy held then, and the next daemon is started. What the lost catalog said
was there must be there, byte by byte; and what its users wrote after the verb, too.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockd.catalog.copy import newest_heading
from blockd.catalog.restoring import restore_copy
from blockd.domain.effects import SideEffects
from blockd.domain.group import NewGroup
from blockd.domain.listing import Page, SnapshotFilter, VolumeFilter
from blockd.domain.snapshot import NewSnapshot, Quiesce, Snapshot
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume, Volume, VolumeChange
from tests.service.test_failures import idle, settled_snapshot, settled_volume, until
from tests.support import stamps
from tests.support.service import DRIVERS, Running, file_config, running

SIZE = MIB + 512
OLD, NEW, USED = 1, 2, 3


@dataclass
class Before:
    volume: Volume
    snapshot: Snapshot
    deleted: Volume


async def make(run: Running, size: int = SIZE, of: str | None = None) -> Volume:
    new = NewVolume("made", None, size, 5000, (), None, of)
    return await settled_volume(run, await run.service.volumes.create(new))


async def path_of(run: Running, volume_id: str) -> str:
    return (await run.service.volumes.device(volume_id)).path


async def use(run: Running, volume_id: str) -> None:
    """What the verb gave is written to."""
    stamps.stamp(await path_of(run, volume_id), USED)


async def create(run: Running, _: Before) -> None:
    await use(run, (await make(run)).id)


async def clone(run: Running, before: Before) -> None:
    await use(run, (await make(run, 5 * SIZE, before.snapshot.id)).id)


async def grow(run: Running, before: Before) -> None:
    change = VolumeChange(size_bytes=5 * SIZE)
    await settled_volume(run, await run.service.volumes.change(before.volume.id, change))
    await use(run, before.volume.id)


async def take(run: Running, before: Before) -> None:
    new = NewSnapshot(before.volume.id, "taken", None, (), public=False)
    await settled_snapshot(run, await run.service.snapshots.create(new))
    await use(run, before.volume.id)


async def take_group(run: Running, before: Before) -> None:
    other = await make(run)
    new = NewGroup((before.volume.id, other.id), "together", None, Quiesce.AUTO)
    await run.service.groups.create(new)
    await use(run, before.volume.id)


async def revert(run: Running, before: Before) -> None:
    begun = await run.service.volumes.revert(before.volume.id, before.snapshot.id, True)
    await settled_volume(run, begun)
    await use(run, before.volume.id)


async def revert_for_good(run: Running, before: Before) -> None:
    begun = await run.service.volumes.revert(before.volume.id, before.snapshot.id, False)
    await settled_volume(run, begun)
    await use(run, before.volume.id)


async def delete(run: Running, before: Before) -> None:
    await run.service.volumes.delete(before.volume.id)


async def undelete(run: Running, before: Before) -> None:
    await run.service.volumes.undelete(before.deleted.id)
    await use(run, before.deleted.id)


async def delete_snapshot(run: Running, before: Before) -> None:
    await run.service.snapshots.delete(before.snapshot.id)


VERBS: dict[str, Callable[[Running, Before], Awaitable[None]]] = {
    "create": create,
    "clone": clone,
    "grow": grow,
    "snapshot": take,
    "group": take_group,
    "revert": revert,
    "revert for good": revert_for_good,
    "delete": delete,
    "undelete": undelete,
    "delete snapshot": delete_snapshot,
}


class Moments(SideEffects):
    """Keeps the directory at every event, once armed."""

    def __init__(self, root: Path, kept: Path) -> None:
        self._root, self._kept = root, kept
        self.armed = False
        self.taken: list[Path] = []
        self._lock = threading.Lock()
        kept.mkdir()

    def before(self, name: str) -> None:
        self.take(name)

    def after(self, name: str) -> None:
        self.take(name)

    def take(self, name: str = "") -> None:
        if self.armed and name != "copy write":  # these come by themselves, at any time
            with self._lock:
                moment = self._kept / f"{len(self.taken):03d}"
                copy(self._root, moment)
                self.taken.append(moment)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)
    (target / "catalog.sqlite-shm").unlink(missing_ok=True)


@pytest.mark.parametrize("storage_class", DRIVERS)
@pytest.mark.parametrize(
    "front", [pytest.param("fronts are up", marks=pytest.mark.full), "after a reboot"]
)
@pytest.mark.parametrize("verb", VERBS)
async def test_restored_catalog_does_nothing_again_that_was_done_and_used(
    tmp_path: Path, verb: str, storage_class: str, front: str
) -> None:
    moments = Moments(tmp_path / "root", tmp_path / "kept")
    await record(tmp_path / "root", moments, verb, storage_class)
    last = moments.taken[-1]
    pairs = [(moment, oldest(moments.taken, moment, storage_class)) for moment in moments.taken]
    pairs += [(last, moment) for moment in moments.taken if is_allowed(moment, last, storage_class)]
    done = set()
    for disks, catalog in pairs:
        content = content_of(catalog)
        key = (disks, hashlib.sha256(content).hexdigest())
        if key in done:
            continue
        done.add(key)
        root = tmp_path / "next"
        copy(disks, root)
        relink(root, storage_class, keep=front == "fronts are up")
        try:
            await expect_all_back(root, content, storage_class)
        except BaseException as error:
            error.add_note(f"{verb}: disks of {disks.name}, catalog of {catalog.name}")
            raise
        shutil.rmtree(root)
    print(f"{verb}: {len(done)} pairs of {len(moments.taken)} moments")


async def record(root: Path, moments: Moments, verb: str, storage_class: str) -> None:
    root.mkdir()
    async with running(
        root, effects=moments, default_class=storage_class, keeps_copies=True
    ) as run:
        volume = await make(run)
        stamps.stamp(await path_of(run, volume.id), OLD)
        new = NewSnapshot(volume.id, "s", None, (), public=False)
        snapshot = await settled_snapshot(run, await run.service.snapshots.create(new))
        stamps.stamp(await path_of(run, volume.id), NEW)
        deleted = await make(run)
        await run.service.volumes.delete(deleted.id)
        await until(lambda: idle(run))
        await run.catalog.copied()
        moments.armed = True
        moments.take()
        await VERBS[verb](run, Before(volume, snapshot, deleted))
        await until(lambda: idle(run))
        moments.take()
        moments.armed = False


def content_of(moment: Path) -> bytes:
    """The catalog of a moment, its log included."""
    with closing(sqlite3.connect(moment / "catalog.sqlite")) as connection:
        return connection.serialize()


def generation_of(moment: Path) -> int:
    with closing(sqlite3.connect(moment / "catalog.sqlite")) as connection:
        (found,) = connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
    return int(found)


def is_allowed(catalog: Path, disks: Path, storage_class: str) -> bool:
    """Whether a copy may be as old as this when the disks are as they are."""
    space = disks / storage_class / "copy"
    with closing(sqlite3.connect(disks / "catalog.sqlite")) as connection:
        (id_,) = connection.execute("SELECT value FROM meta WHERE key = 'catalog_id'").fetchone()
    heading = newest_heading(str(space), space.stat().st_size, id_)
    assert heading is not None
    return heading.generation <= generation_of(catalog) <= generation_of(disks)


def oldest(moments: list[Path], disks: Path, storage_class: str) -> Path:
    return next(moment for moment in moments if is_allowed(moment, disks, storage_class))


def relink(root: Path, storage_class: str, *, keep: bool) -> None:
    """Fronts lead to the disks of this directory; after a reboot there are none."""
    for link in (root / storage_class / "dev").iterdir():
        disk = link.readlink().name
        link.unlink()
        if keep:
            link.symlink_to(root / storage_class / "disks" / disk)


async def rows(run: Running) -> list[Volume | Snapshot]:
    everything = Page(size=100)
    volumes, _ = await run.catalog.read(
        lambda tx: tx.page_of_volumes(VolumeFilter(include_deleted=True), everything)
    )
    snapshots, _ = await run.catalog.read(
        lambda tx: tx.page_of_snapshots(SnapshotFilter(include_deleted=True), everything)
    )
    return [*volumes, *snapshots]


def held(root: Path, storage_class: str, disk: str, size_bytes: int) -> str:
    """What the first bytes of a disk are."""
    with (root / storage_class / "disks" / disk).open("rb") as file:
        return hashlib.sha256(file.read(size_bytes)).hexdigest()


async def expect_all_back(root: Path, content: bytes, storage_class: str) -> None:
    path = root / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as lost:
        lost.row_factory = sqlite3.Row
        whole = [
            dict(row)
            for table in ("volumes", "snapshots")
            for row in lost.execute(
                f"SELECT id, disk, size_bytes, status, '{table}' AS kind FROM {table}"
                " WHERE status IN ('available', 'deleted') AND error IS NULL"
            )
        ]
    # A snapshot that is being merged has none, and gets it back at the end.
    there = [row for row in whole if (root / storage_class / "disks" / row["disk"]).exists()]
    before = {
        row["disk"]: held(root, storage_class, row["disk"], row["size_bytes"]) for row in there
    }
    restore_copy(path, content, "lost")
    driver = DRIVERS[storage_class](root / storage_class)
    config = file_config(root)
    async with running(root, driver=driver, config=config, default_class=storage_class) as run:
        await until(lambda: idle(run))
        found = {row.disk: row for row in await rows(run)}
        for row in whole:
            now = found.get(row["disk"])
            assert now is not None, f"{row} is gone"
            assert now.status in (Status.AVAILABLE, Status.DELETED), (row, now)
            assert now.size_bytes == row["size_bytes"] or is_grown(now, row), (row, now)
            assert isinstance(now, Volume) == (row["kind"] == "volumes")
            after = held(root, storage_class, row["disk"], row["size_bytes"])
            assert after == before.get(row["disk"], after), f"{row} holds other bytes"
        for row_now in found.values():
            assert row_now.status not in (Status.CREATING, Status.UPDATING), row_now
        assert await run.catalog.read(lambda tx: tx.intents()) == []
        assert await run.catalog.read(lambda tx: tx.jobs.unfinished()) == []
        again = await run.service.volumes.create(
            NewVolume("next", None, SIZE, 5000, (), None, None)
        )
        assert (await settled_volume(run, again)).status is Status.AVAILABLE


def is_grown(now: Volume | Snapshot, row: dict[str, object]) -> bool:
    """A thin disk tells its volume's size to the extent, where no front tells it exactly."""
    size_bytes = row["size_bytes"]
    assert isinstance(size_bytes, int)
    return now.size_bytes == -(-size_bytes // (4 * MIB)) * 4 * MIB
