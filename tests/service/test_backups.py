"""Backups of metadata, over files: whole or not at all, bounded, daily, told of."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from blockd.domain.effects import SideEffects
from blockd.domain.errors import BackupFailed, InvalidArguments, StorageError
from blockd.service import backup_files
from blockd.service.backups import Backups
from blockd.service.classes import StorageClass, StorageClasses
from tests.support.file_driver import FileDriver
from tests.support.thick_files import ThickFileDriver

DAY_S = 86_400.0


@dataclass
class Rig:
    """`now_s` is the uptime; `make` is a daemon's start."""

    folder: Path
    driver: FileDriver
    classes: StorageClasses
    now_s: float = 1000.0

    async def make(self, keep: int = 3) -> Backups:
        backups = Backups(self.folder, keep, self.classes, SideEffects(), lambda: self.now_s)
        await backups.start()
        return backups

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def rename_to(self, time: str) -> None:
        """As if the clock had said `time`."""
        for path in self.folder.iterdir():
            first, number, _, kind = path.name.split(".", 3)
            path.rename(path.with_name(f"{first}.{number}.{time}.{kind}"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    driver = FileDriver(tmp_path / "sbs")
    classes = StorageClasses({"sbs": StorageClass("sbs", driver)}, "sbs")
    return Rig(tmp_path / "state" / "backups", driver, classes)


async def test_backup_is_private_and_holds_both_parts(rig: Rig) -> None:
    backup = await (await rig.make()).take("sbs")
    kinds = {file.kind: file for file in backup.files}
    assert set(kinds) == {"vg", "thin.xml.gz"}
    assert stat.S_IMODE(rig.folder.stat().st_mode) == 0o700
    for file in backup.files:
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert file.size_bytes == file.path.stat().st_size
    text = gzip.decompress(kinds["thin.xml.gz"].path.read_bytes())
    assert text == b"<superblock>\n</superblock>\n"
    assert kinds["vg"].path.read_bytes() == b"[]"


async def test_thick_class_has_only_the_text(rig: Rig, tmp_path: Path) -> None:
    thick = StorageClass("bssd", ThickFileDriver(tmp_path / "bssd"))
    rig.classes = StorageClasses({"bssd": thick}, "bssd")
    backup = await (await rig.make()).take("bssd")
    assert backup.kinds == {"vg"}


async def test_oldest_go_when_there_are_too_many(rig: Rig) -> None:
    backups = await rig.make(keep=2)
    for _ in range(4):
        await backups.take("sbs")
    assert [each.number for each in await backups.listed()] == [4, 3]
    assert len(rig.names()) == 4


@pytest.mark.parametrize("time", ["19700101T000000Z", "20990101T000000Z"])
async def test_clock_that_jumps_neither_stops_backups_nor_removes_the_newest(
    rig: Rig, time: str
) -> None:
    backups = await rig.make(keep=2)
    for _ in range(2):
        await backups.take("sbs")
    rig.rename_to(time)
    restarted = await rig.make(keep=2)
    newest = await restarted.take("sbs")
    assert [each.number for each in await restarted.listed()] == [newest.number, 2]
    assert restarted.problems() == []


async def test_pool_that_is_broken_for_long_does_not_push_out_its_last_mappings(rig: Rig) -> None:
    backups = await rig.make(keep=2)
    for _ in range(2):
        await backups.take("sbs")
    for _ in range(5):
        rig.driver.fail_next["thin_dump"] = StorageError("thin_dump ended with status 1: bad")
        with pytest.raises(BackupFailed, match="bad") as failed:
            await backups.take("sbs")
        assert failed.value.kept is not None
        assert failed.value.kept.kinds == {"vg"}
    assert [each.number for each in await backups.listed()] == [7, 6, 2, 1]
    assert not [name for name in rig.names() if name.startswith(".")]
    (line,) = backups.problems()
    assert "thin_dump ended with status 1: bad; the last one is of" in line
    await backups.take("sbs")
    assert backups.problems() == []


async def test_repair_may_begin_with_the_text_alone_but_not_without_it(rig: Rig) -> None:
    backups = await rig.make()
    assert await backups.before_repair("sbs") is None
    rig.driver.fail_next["thin_dump"] = StorageError("the pool takes no messages")
    assert "takes no messages" in (await backups.before_repair("sbs") or "")
    rig.driver.fail_next["metadata"] = StorageError("LVM fails")
    with pytest.raises(BackupFailed, match="LVM fails"):
        await backups.before_repair("sbs")


async def test_class_that_does_not_exist_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidArguments, match="one of: sbs"):
        await (await rig.make()).take("other")


async def test_full_disk_leaves_the_old_ones_and_no_remains(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = await rig.make(keep=1)
    await backups.take("sbs")
    before = rig.names()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(BackupFailed, match="No space left") as failed:
            await backups.take("sbs")
    assert failed.value.kept is None
    assert rig.names() == before
    assert "No space left" in backups.problems()[0]


async def test_disk_is_not_filled_to_the_brim(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SimpleNamespace(f_blocks=1000, f_frsize=4096, f_bavail=50)
    monkeypatch.setattr(backup_files.os, "statvfs", lambda _: space)
    with pytest.raises(BackupFailed, match="left free for others"):
        await (await rig.make()).take("sbs")
    space.f_bavail = 60
    await (await rig.make()).take("sbs")


async def test_remains_of_a_killed_daemon_go_with_the_next_backup(rig: Rig) -> None:
    rig.folder.mkdir(parents=True)
    (rig.folder / ".sbs.000001.20261126T000000Z.vg.new").touch()
    (rig.folder / "notes.txt").touch()
    backups = await rig.make()
    assert await backups.listed() == []
    await backups.take("sbs")
    assert len(rig.names()) == 3
    assert "notes.txt" in rig.names()


async def test_first_backup_comes_soon_after_the_first_start_and_then_daily(rig: Rig) -> None:
    backups = await rig.make(keep=10)
    running = asyncio.create_task(backups.run(settle_s=0))
    try:
        await until(lambda: backups._states["sbs"].good_at is not None)
    finally:
        await _ended(running)
    assert _count(rig) == 1
    rig.now_s += DAY_S - 10
    await _run_for_a_moment(backups)
    assert _count(rig) == 1
    rig.now_s += 20
    running = asyncio.create_task(backups.run(settle_s=0))
    try:
        await until(lambda: backups._states["sbs"].good_at == rig.now_s)
    finally:
        await _ended(running)
    assert _count(rig) == 2


async def test_restart_knows_the_last_one_from_the_files(rig: Rig) -> None:
    await (await rig.make()).take("sbs")
    await _run_for_a_moment(await rig.make())
    assert _count(rig) == 1


async def test_old_backup_is_told_of_until_there_is_a_new_one(rig: Rig) -> None:
    backups = await rig.make()
    assert backups.problems() == []
    await backups.take("sbs")
    rig.now_s += 2 * DAY_S + 1
    assert "no backup of its metadata for two days" in backups.problems()[0]
    await backups.take("sbs")
    assert backups.problems() == []
    rig.rename_to("20200101T000000Z")
    assert "for two days: the last one is of 2020-01-01" in (await rig.make()).problems()[0]


async def test_cancelled_backup_leaves_no_remains(rig: Rig) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            begun.set()
            yield b"<x/>\n"

    rig.driver._mappings = endless  # type: ignore[assignment,method-assign]
    taking = asyncio.create_task((await rig.make()).take("sbs"))
    async with asyncio.timeout(10):
        await begun.wait()
    await _ended(taking)
    async with asyncio.timeout(10):
        while [name for name in rig.names() if name.endswith(".new")]:
            await asyncio.sleep(0)
    assert [name.rpartition(".")[2] for name in rig.names()] == ["vg"]


def _count(rig: Rig) -> int:
    return sum(name.endswith(".thin.xml.gz") for name in rig.names()) if rig.folder.exists() else 0


async def _run_for_a_moment(backups: Backups) -> None:
    """For as long as it does something: it takes no thread but for a backup, and asks no clock."""
    running = asyncio.create_task(backups.run(settle_s=0))
    for _ in range(20):
        await asyncio.sleep(0)
    await _ended(running)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


async def _ended(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
