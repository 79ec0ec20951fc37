"""The copy of the catalog: written soon, seldom, and never in the way."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockd.catalog import Transaction
from blockd.catalog.copy import CopySpace, PackedImage, newest_heading
from blockd.domain.effects import SideEffects
from blockd.domain.errors import NoSpace, StartError, StorageError
from blockd.domain.units import MIB
from blockd.service import catalog_copies
from tests.support.file_driver import FileDriver
from tests.support.service import Running, running


class Writes(SideEffects):
    """Counts the copies that were written, in a thread."""

    def __init__(self) -> None:
        self.count = 0

    def after(self, name: str) -> None:
        if name == "copy write":
            self.count += 1


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.002)


@dataclass
class Rig:
    run: Running
    driver: FileDriver
    writes: Writes
    catalog_id: str = ""

    async def change(self, note: str) -> None:
        """One commit."""
        await self.run.catalog.write("noted", lambda tx: tx.put_meta("note", note))

    def state(self) -> catalog_copies.CopyState:
        """Of the one copy."""
        assert self.run.copies is not None
        (state,) = self.run.copies.states()
        return state

    def is_current(self) -> bool:
        """As it is on the disk."""
        return self.on_disk() == self.run.catalog.generation

    def on_disk(self) -> int:
        heading = newest_heading(
            str(self.driver.copy), self.driver.copy.stat().st_size, self.catalog_id
        )
        return -1 if heading is None else heading.generation


@pytest.fixture
def driver(tmp_path: Path) -> FileDriver:
    return FileDriver(tmp_path / "sbs")


@pytest.fixture
async def rig(tmp_path: Path, driver: FileDriver) -> AsyncIterator[Rig]:
    writes = Writes()
    async with running(tmp_path, driver=driver, effects=writes, keeps_copies=True) as run:
        made = Rig(run, driver, writes)
        made.catalog_id = await run.catalog.read(lambda tx: tx.meta("catalog_id")) or ""
        yield made


async def test_catalog_is_copied_before_anything_is_served(rig: Rig) -> None:
    assert rig.is_current()
    assert rig.writes.count == 1
    assert rig.state().written_at is not None


async def test_burst_of_changes_is_copied_once_and_soon(rig: Rig) -> None:
    began = asyncio.get_running_loop().time()
    for number in range(50):
        await rig.change(f"{number}")
    assert rig.on_disk() < rig.run.catalog.generation
    await until(lambda: rig.is_current() and rig.writes.count > 1)
    assert rig.writes.count == 2
    assert asyncio.get_running_loop().time() - began < 5
    assert rig.state().behind_s == 0


async def test_idle_daemon_copies_nothing_and_sets_no_timer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SETTLE_S", "_PAUSE_S", "_RETRY_S"):
        monkeypatch.setattr(catalog_copies, name, 0.001)
    await rig.change("last")
    await until(lambda: rig.is_current() and rig.writes.count > 1)
    count, content = rig.writes.count, rig.driver.copy.read_bytes()
    for _ in range(100):
        await asyncio.sleep(0.002)  # what would be done again would be done by now
    assert (rig.writes.count, rig.driver.copy.read_bytes()) == (count, content)


async def test_stop_copies_the_last_change(tmp_path: Path, driver: FileDriver) -> None:
    async with running(tmp_path, driver=driver, keeps_copies=True) as run:
        catalog_id = await run.catalog.read(lambda tx: tx.meta("catalog_id")) or ""
        await run.catalog.write("noted", lambda tx: tx.put_meta("note", "last"))
        generation = run.catalog.generation
    heading = newest_heading(str(driver.copy), driver.copy.stat().st_size, catalog_id)
    assert heading is not None
    assert heading.generation == generation


async def test_copied_waits_until_what_is_committed_is_in_the_copy(rig: Rig) -> None:
    await rig.change("to be seen")
    assert not rig.is_current()
    await rig.run.catalog.copied()
    assert rig.is_current()
    count = rig.writes.count
    await rig.run.catalog.copied()
    assert rig.writes.count == count


async def test_full_volume_group_is_told_and_holds_up_nobody(
    tmp_path: Path, driver: FileDriver
) -> None:
    driver.fail_next["copy_space"] = NoSpace("volume group vg has no 8 MiB")
    async with running(tmp_path, driver=driver, keeps_copies=True) as run:
        await run.catalog.write("noted", lambda tx: tx.put_meta("note", "x"))
        await run.catalog.copied()  # there is no copy that could be behind
        health = await run.service.host.health()
        assert health.status == "degraded"
        assert health.problems == ["class sbs: copy of the catalog: volume group vg has no 8 MiB"]
        assert health.catalog_copies[0].written_at is None


async def test_space_is_made_once_there_is_room(
    tmp_path: Path, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SETTLE_S", "_PAUSE_S", "_RETRY_S", "_MAKE_AGAIN_S"):
        monkeypatch.setattr(catalog_copies, name, 0.01)
    driver.fail_next["copy_space"] = NoSpace("none")
    async with running(tmp_path, driver=driver, keeps_copies=True) as run:
        assert run.copies is not None
        copies = run.copies
        await until(lambda: copies.states()[0].problem is None)
        assert copies.states()[0].written_at is not None


async def test_space_is_tried_for_again_soon_when_it_was_not_room_that_lacked(
    tmp_path: Path, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SETTLE_S", "_PAUSE_S", "_RETRY_S"):
        monkeypatch.setattr(catalog_copies, name, 0.01)
    driver.fail_next["copy_space"] = StorageError("lvs did not end within 4 s")
    async with running(tmp_path, driver=driver, keeps_copies=True) as run:
        assert run.copies is not None
        copies = run.copies
        await until(lambda: copies.states()[0].written_at is not None)


async def test_space_that_comes_late_with_all_of_the_catalog_in_it_leaves_no_problem(
    tmp_path: Path, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, driver=driver, keeps_copies=True):
        pass
    for name in ("_SETTLE_S", "_PAUSE_S", "_RETRY_S"):
        monkeypatch.setattr(catalog_copies, name, 0.01)
    driver.fail_next["copy_space"] = StorageError("lvchange did not end within 4 s")
    async with running(tmp_path, driver=driver, keeps_copies=True) as run:
        assert run.copies is not None
        copies = run.copies
        await until(lambda: copies.states()[0].behind_s == 0)
        state = copies.states()[0]
        assert (state.problem, state.written_at is not None) == (None, True)


async def put_back(root: Path, driver: FileDriver) -> bytes:
    """An old catalog's file is there, of which there is a newer copy; the space of the copy."""
    async with running(root, driver=driver, keeps_copies=True) as run:
        path = run.config.catalog.path
    old = path.read_bytes()
    async with running(root, driver=driver, keeps_copies=True) as run:
        for number in range(3):
            await run.catalog.write("noted", lambda tx, n=number: tx.put_meta("note", f"{n}"))
    path.write_bytes(old)
    return driver.copy.read_bytes()


async def test_start_that_sees_the_newer_copy_only_now_is_refused_and_the_copy_is_kept(
    tmp_path: Path, driver: FileDriver
) -> None:
    content = await put_back(tmp_path, driver)
    with pytest.raises(StartError, match=r"is older than its copy of .*: start blockd again"):
        async with running(tmp_path, driver=driver, keeps_copies=True):
            pass
    assert driver.copy.read_bytes() == content


async def test_newer_copy_that_comes_late_is_told_and_never_written_over(
    tmp_path: Path, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = await put_back(tmp_path, driver)
    for name in ("_SETTLE_S", "_PAUSE_S", "_RETRY_S"):
        monkeypatch.setattr(catalog_copies, name, 0.01)
    driver.fail_next["copy_space"] = StorageError("lvchange: exit 5")
    async with running(tmp_path, driver=driver, keeps_copies=True) as run:
        assert run.copies is not None
        copies = run.copies
        await until(lambda: "older than its copy" in (copies.states()[0].problem or ""))
        for number in range(20):  # its commits are more than the copy's by now
            await run.catalog.write("noted", lambda tx, n=number: tx.put_meta("note", f"{n}"))
            copies.try_again()
            await asyncio.sleep(0.01)
        with pytest.raises(StorageError, match="is older than its copy"):
            await run.catalog.copied()
    assert driver.copy.read_bytes() == content


async def test_disk_that_fails_is_told_and_copied_to_again_when_it_is_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SETTLE_S", "_PAUSE_S", "_RETRY_S"):
        monkeypatch.setattr(catalog_copies, name, 0.01)

    def fails(space: CopySpace, packed: PackedImage) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(CopySpace, "write", fails)
        await rig.change("lost")
        with pytest.raises(StorageError, match="Input/output error"):
            await rig.run.catalog.copied()
        assert "Input/output error" in (rig.state().problem or "")
    await until(lambda: rig.is_current() and rig.state().problem is None)


async def test_disk_that_hangs_holds_up_no_change_and_no_stop(
    tmp_path: Path, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_copies, "_DEADLINE_S", 0.05)
    hangs = threading.Event()
    try:
        async with running(tmp_path, driver=driver, keeps_copies=True) as run:
            monkeypatch.setattr(CopySpace, "write", lambda *_: hangs.wait(20))
            async with asyncio.timeout(5):
                await run.catalog.write("noted", lambda tx: tx.put_meta("note", "x"))
                with pytest.raises(StorageError, match="does not answer"):
                    await run.catalog.copied()
                with pytest.raises(StorageError, match="does not answer"):
                    await run.catalog.copied()
    finally:
        hangs.set()


async def test_space_grows_before_the_catalog_needs_all_of_a_slot(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SETTLE_S", "_PAUSE_S", "_RETRY_S", "_MAKE_AGAIN_S"):
        monkeypatch.setattr(catalog_copies, name, 0.01)
    assert rig.driver.copy.stat().st_size == 8 * MIB

    def much(tx: Transaction) -> None:
        tx.put_meta("much", random_text(3 * MIB))

    await rig.run.catalog.write("much", much)
    await until(lambda: rig.driver.copy.stat().st_size == 16 * MIB and rig.is_current())
    await rig.change("after")
    await until(rig.is_current)


def random_text(length: int) -> str:
    """Text that gzip makes no smaller than three quarters."""
    return base64.b64encode(os.urandom(length)).decode()


async def test_turn_that_is_held_does_not_keep_a_change_from_being_copied(rig: Rig) -> None:
    async with rig.driver.turn():
        await rig.change("within a turn")
        await rig.run.catalog.copied()
    assert rig.is_current()
