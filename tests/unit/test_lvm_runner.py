"""LVM that crashes, hangs or says odd things, by a script in its place."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from blockd.config import LvmSection
from blockd.daemon.groups import Groups
from blockd.domain.effects import SideEffects
from blockd.domain.errors import HostExhausted, StorageError, StorageOverdue
from blockd.storage import lvm_lock, lvm_runner
from blockd.storage.dm import DeviceMapper
from blockd.storage.held_root import HeldRoot
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_lock import lock_holders, program_of
from blockd.storage.vg_queue import VgQueue
from tests.support.service import file_config

VGS = Path(__file__).parents[1] / "data" / "vgs-2.03.16.json"

#: As vgcfgbackup does.
WRITE_TEXT = "for path; do case $path in *.text) echo whole > $path ;; esac; done"

Make = Callable[..., LvmCommands]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """LVM is a script: the n-th call runs its n-th line, all later ones the last."""

    def make(*lines: str, timeout_s: float = 10.0) -> LvmCommands:
        (tmp_path / "calls").unlink(missing_ok=True)
        (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
        script = tmp_path / "lvm"
        script.write_text(
            f"""#!/bin/sh
cd {tmp_path}
echo "$@" >> calls
line=$(sed -n "$(wc -l < calls)p" lines)
eval "${{line:-$(tail -n 1 lines)}}"
"""
        )
        script.chmod(0o755)
        monkeypatch.setattr(lvm_runner, "find_tool", lambda _name, _package: str(script))
        queue = VgQueue(lambda _: None)
        return LvmCommands("vg", tmp_path, queue, SideEffects(), udev=True, timeout_s=timeout_s)

    return make


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().splitlines())


@pytest.mark.parametrize("first", ["kill -s SEGV $$", "exit 139", "exit 0", f"head -c 99 {VGS}"])
async def test_report_of_lvm_that_crashes_or_is_cut_off_is_asked_for_again(
    make: Make, tmp_path: Path, first: str
) -> None:
    group = await make(first, first, f"cat {VGS}").vg_facts()
    assert group.extent_bytes == 4 * 1024**2
    assert calls(tmp_path) == 3


async def test_report_that_never_comes_is_an_error_in_the_end(make: Make, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        await make("exit 0").vg_facts()
    assert calls(tmp_path) == 3


async def test_report_that_lvm_refuses_is_not_asked_for_again(make: Make, tmp_path: Path) -> None:
    with pytest.raises(LvmFailed, match="no such group"):
        await make("echo no such group >&2; exit 5").vg_facts()
    assert calls(tmp_path) == 1


@pytest.mark.parametrize("first", ["kill -s SEGV $$", "exit 139"])
async def test_change_that_crashes_is_made_once_more(
    make: Make, tmp_path: Path, first: str
) -> None:
    await make(first, "exit 0").refresh("lv")
    assert calls(tmp_path) == 2
    with pytest.raises(LvmFailed):
        await make(first, first, "exit 0").refresh("lv")


async def test_change_that_is_refused_is_not_made_again(make: Make, tmp_path: Path) -> None:
    with pytest.raises(LvmFailed, match="lvchange: in use"):
        await make("echo in use >&2; exit 5").refresh("lv")
    assert calls(tmp_path) == 1


async def test_complaint_is_one_line_that_can_be_printed(make: Make) -> None:
    noise = r"printf '\033[31m\377 it\a failed\033[0m\n  WARNING: later\n' >&2; exit 5"
    with pytest.raises(LvmFailed) as refused:
        await make(noise).refresh("lv")
    assert str(refused.value) == "lvchange: [31m\N{REPLACEMENT CHARACTER} it failed[0m"


async def test_command_beyond_its_deadline_is_named_until_it_ends(
    make: Make, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "end")
    lvm = make("read -r _ < end", timeout_s=0.2)
    assert lvm.slow() == []
    with pytest.raises(StorageOverdue):
        await lvm.refresh("lv")
    (line,) = lvm.slow()
    assert line.startswith("lvm lvchange (pid ")
    assert "volume group vg" in line
    (tmp_path / "end").write_text("now\n")
    async with asyncio.timeout(10):
        while lvm.slow():
            await asyncio.sleep(0.01)


async def test_nothing_is_begun_while_a_command_that_was_left_still_runs(
    make: Make, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "end")
    lvm = make("read -r _ < end", f"cat {VGS}", timeout_s=2.0)
    left = asyncio.create_task(lvm.refresh("lv"))
    async with asyncio.timeout(10):
        while not lvm._running:
            await asyncio.sleep(0.01)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    with pytest.raises(StorageOverdue, match=r"^vgs is not begun: lvm lvchange \(pid \d+\) still"):
        await lvm.vg_facts()
    (tmp_path / "end").write_text("now\n")
    async with asyncio.timeout(10):
        while lvm.slow() or lvm._late:
            await asyncio.sleep(0.01)
    await lvm.vg_facts()
    assert calls(tmp_path) == 2


async def test_nothing_is_begun_while_a_search_for_disks_that_was_left_still_runs(
    make: Make, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "end")
    lvm = make("echo PVs are missing >&2; exit 5", "read -r _ < end", f"cat {VGS}", timeout_s=1.0)
    section = LvmSection(system_dir=tmp_path / "run" / "lvm")
    groups = Groups(
        file_config(tmp_path).model_copy(update={"lvm": section}),
        cast("DeviceMapper", None),
        SideEffects(),
    )
    lvm._find_disks = lambda: groups.limit_lvm(lvm)
    with pytest.raises(StorageOverdue, match=r"^pvs did not end within 1 s$"):
        await lvm.refresh("lv")
    with pytest.raises(StorageOverdue, match=r"^vgs is not begun: lvm pvs \(pid \d+\) still runs$"):
        await lvm.vg_facts()
    assert "lvm pvs" in lvm.slow()[0]
    (tmp_path / "end").write_text("now\n")
    async with asyncio.timeout(10):
        while lvm.has_left_any:
            await asyncio.sleep(0.01)
    await lvm.vg_facts()
    assert calls(tmp_path) == 3


@pytest.mark.parametrize("first", ["kill -s SEGV $$", "exit 139"])
async def test_text_of_lvm_that_crashes_is_asked_for_again(
    make: Make, tmp_path: Path, first: str
) -> None:
    assert await make(first, WRITE_TEXT).text() == b"whole\n"
    assert calls(tmp_path) == 2
    with pytest.raises(LvmFailed):
        await make(first, first, WRITE_TEXT).text()


async def test_metadata_being_put_away_keep_the_turn_though_nobody_waits_for_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "end")
    lvm = make("exit 0", "exit 0", "read -r _ < end")
    monkeypatch.setattr(HeldRoot, "_found", lambda _: None)
    ended: list[str] = []

    async def put_back() -> None:
        async with lvm._queue.turn(), HeldRoot("pool", lvm, cast("DeviceMapper", None))._alone():
            pass

    async def next_turn() -> None:
        async with lvm._queue.turn():
            ended.append(f"{len(lvm._running)} run")

    putting_back = asyncio.create_task(put_back())
    async with asyncio.timeout(10):
        while not (tmp_path / "calls").exists() or calls(tmp_path) < 3:
            await asyncio.sleep(0.01)
    putting_back.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting_back
    waiting = asyncio.create_task(next_turn())
    await asyncio.sleep(0)
    (tmp_path / "end").write_text("now\n")
    async with asyncio.timeout(10):
        await waiting
    assert ended == ["0 run"]


async def test_want_of_descriptors_fails_nothing_and_leaks_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvm, real, wanted = make("exit 0"), os.memfd_create, 1
    before = len(os.listdir("/proc/self/fd"))

    def memfd_create(name: str, flags: int) -> int:
        nonlocal wanted
        if wanted == 0:
            raise OSError(errno.EMFILE, "Too many open files")
        wanted -= 1
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", memfd_create)
    with pytest.raises(HostExhausted, match="lvchange cannot be started: Too many open files"):
        await lvm.refresh("lv")
    assert len(os.listdir("/proc/self/fd")) == before


def test_holder_of_the_lock_of_a_volume_group_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvm_lock, "LOCK_DIRECTORY", tmp_path)
    assert lock_holders("vg") == set()
    with (tmp_path / "V_vg").open("w") as file:
        assert lock_holders("vg") == set()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holders("vg") == {os.getpid()}
        assert lock_holders("other") == set()
    assert program_of(os.getpid())
    assert program_of(2**22 + 1) == "unknown"
