"""Disks that hang, leave and come back, and changes of a volume group by others."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockd.storage import vg_watch
from blockd.storage.pv_header import PvHeader
from blockd.storage.vg_queue import VgQueue
from blockd.storage.vg_watch import VgWatch

VG_UUID = "the-group"


class Disks:
    """What is on the disks of a host, by path."""

    def __init__(self) -> None:
        self.found: dict[str, PvHeader | OSError | None] = {
            "/dev/a": PvHeader("pv-a", VG_UUID, b"1"),
            "/dev/other": PvHeader("pv-o", "another-group", b"1"),
            "/dev/none": None,
        }
        self.hang = threading.Event()
        self.hang.set()
        #: A full look has read a disk; what it read is known once `arrive` is set.
        self.was_read, self.arrive = threading.Event(), threading.Event()
        self.arrive.set()

    def look(self, path: Path) -> PvHeader | None:
        try:
            return self.read(path)
        finally:
            self.was_read.set()
            assert self.arrive.wait(60)

    def read(self, path: Path) -> PvHeader | None:
        assert self.hang.wait(60)
        found = self.found.get(str(path), OSError(errno.ENOENT, "gone"))
        if isinstance(found, OSError):
            raise found
        return found

    def read_state(self, path: Path, state_at: int, *, wait: bool) -> bytes | None:
        del state_at
        if not wait:
            return None
        header = self.read(path)
        assert header is not None
        return header.state

    def change(self, path: str, state: bytes) -> None:
        """Somebody writes new metadata."""
        header = self.found[path]
        assert isinstance(header, PvHeader)
        self.found[path] = PvHeader(header.pv_uuid, header.vg_uuid, state)


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    made = Disks()
    monkeypatch.setattr(vg_watch, "read_pv_header", made.look)
    monkeypatch.setattr(vg_watch, "read_state", made.read_state)
    monkeypatch.setattr(vg_watch, "candidate_devices", lambda: sorted(made.found))
    monkeypatch.setattr(vg_watch, "_DEADLINE_S", 0.1)
    monkeypatch.setattr(vg_watch, "_PAUSE_S", 0.0)
    return made


class Watched:
    """A watch that runs, and what it has told of."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.watch = VgWatch("vg", [], self.told.set)
        self.queue = VgQueue(lambda _: None)

    async def hear(self) -> None:
        """Something happened to a disk, and the watch tells."""
        self.watch.look_soon()
        async with asyncio.timeout(10):
            await self.told.wait()
        self.told.clear()

    async def looked(self) -> None:
        """Something happened, and there is nothing to tell."""
        await self.watch._look()
        assert not self.told.is_set()


@pytest.fixture
async def watched(disks: Disks) -> AsyncIterator[Watched]:
    made = Watched()
    await made.watch.open(VG_UUID)
    made.queue.watch = made.watch
    running = asyncio.create_task(made.watch.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    disks.hang.set()


async def test_change_by_others_is_told_and_our_own_is_not(disks: Disks, watched: Watched) -> None:
    await watched.looked()
    async with watched.queue.turn():
        disks.change("/dev/a", b"2")
        await watched.looked()
    await watched.looked()
    disks.change("/dev/a", b"3")
    await watched.hear()
    await watched.looked()
    disks.change("/dev/other", b"2")
    await watched.looked()


async def test_look_that_outlasts_our_turn_tells_of_nothing(
    disks: Disks, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vg_watch, "_DEADLINE_S", 30)
    disks.arrive.clear()
    looking = asyncio.create_task(watched.looked())
    await asyncio.to_thread(disks.was_read.wait, 30)
    async with watched.queue.turn():
        disks.change("/dev/a", b"2")
    disks.arrive.set()
    await looking
    async with watched.queue.turn():
        pass
    assert not watched.told.is_set()


async def test_change_by_others_is_told_when_our_turn_comes(disks: Disks, watched: Watched) -> None:
    disks.change("/dev/a", b"2")
    async with watched.queue.turn():
        assert watched.told.is_set()


async def test_what_a_late_command_did_is_not_known(disks: Disks, watched: Watched) -> None:
    end = asyncio.Event()
    async with watched.queue.turn():
        watched.queue.keep_until(end.wait())
    disks.change("/dev/a", b"2")
    await watched.looked()
    end.set()
    await watched.hear()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"),
        (OSError(errno.ENXIO, "No such device"), "is gone"),
    ],
)
async def test_disk_that_leaves_is_named_until_it_is_back(
    disks: Disks, watched: Watched, error: OSError, line: str
) -> None:
    there = disks.found["/dev/a"]
    disks.found["/dev/a"] = error
    await watched.hear()
    assert watched.watch.problems() == [f"disk /dev/a of volume group vg {line}"]
    await watched.looked()
    disks.found["/dev/a"] = there
    await watched.hear()
    assert watched.watch.problems() == []


async def test_disk_that_comes_back_under_another_name_is_known(
    disks: Disks, watched: Watched
) -> None:
    there = disks.found.pop("/dev/a")
    disks.found["/dev/a"] = None
    await watched.hear()
    assert "another disk has its name" in watched.watch.problems()[0]
    disks.found["/dev/b"] = there
    await watched.hear()
    assert watched.watch.problems() == []


async def test_disk_that_hangs_is_named_and_holds_up_no_turn_for_long(
    disks: Disks, watched: Watched
) -> None:
    disks.hang.clear()
    await watched.hear()
    assert watched.watch.problems() == ["disk /dev/a of volume group vg does not answer"]
    threads = threading.active_count()
    async with asyncio.timeout(5), watched.queue.turn():
        pass
    assert threading.active_count() == threads, "it was asked again before it answered"
    disks.hang.set()
    await watched.hear()
    assert watched.watch.problems() == []


async def test_disk_is_not_to_blame_for_a_want_of_descriptors(
    disks: Disks, watched: Watched
) -> None:
    disks.found["/dev/a"] = OSError(errno.EMFILE, "Too many open files")
    await watched.looked()
    assert watched.watch.problems() == []


async def test_disk_that_left_the_group_is_forgotten(disks: Disks, watched: Watched) -> None:
    disks.found["/dev/a"] = PvHeader("pv-a", "another-group", b"9")
    await watched.looked()
    disks.found["/dev/a"] = OSError(errno.EIO, "Input/output error")
    await watched.looked()
    assert watched.watch.problems() == []
