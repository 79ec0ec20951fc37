"""Several snapshots in one LVM process: its script, and a process each where a line is too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.domain.effects import SideEffects
from blockd.domain.errors import StorageOverdue
from blockd.domain.intent import disk_name, new_id
from blockd.storage import lvm_runner
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.vg_queue import VgQueue

#: As long as the configuration allows, and of every kind of character that LVM does.
VG = ("vg+_.-" * 11)[:61]
TAG = f"blockd.{new_id()}"
#: LVM reads a line into 256 bytes, and refuses one that fills them (lvmcmdline.c, _run_script).
LONGEST = 254

Make = Callable[[str], LvmCommands]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """LVM is a script that notes how it is called, and what it is told by a script of ours."""

    def make(then: str) -> LvmCommands:
        program = tmp_path / "lvm"
        program.write_text(
            f'#!/bin/sh\ncd {tmp_path}\necho "$@" >> calls\n'
            f'[ "$1" != /dev/stdin ] || cat /dev/stdin >> told\n{then}\n'
        )
        program.chmod(0o755)
        monkeypatch.setattr(lvm_runner, "find_tool", lambda _name, _package: str(program))
        queue = VgQueue(lambda _: None)
        return LvmCommands(VG, tmp_path, queue, SideEffects(), udev=True, timeout_s=10)

    return make


def pairs(count: int) -> list[tuple[str, str]]:
    return [(disk_name(new_id()), disk_name(new_id())) for _ in range(count)]


def lines(path: Path) -> list[str]:
    return path.read_text("ascii").splitlines()


async def test_eight_thin_snapshots_are_one_script_also_in_the_group_with_the_longest_name(
    make: Make, tmp_path: Path
) -> None:
    wanted = pairs(8)
    await make("").snapshot_thin(wanted, TAG, timeout_s=5)
    assert lines(tmp_path / "calls") == ["/dev/stdin"]
    first, *commands = lines(tmp_path / "told")
    assert first == "#!lvm"
    assert max(len(command) + 1 for command in commands) <= LONGEST
    for command, (snapshot, origin) in zip(commands, wanted, strict=True):
        words = command.split()
        assert words[:2] == ["lvcreate", "-qq"]
        assert words[-5:] == ["--addtag", TAG, "--name", snapshot, f"{VG}/{origin}"]


async def test_lines_too_long_for_lvm_are_a_process_each_up_to_the_first_that_fails(
    make: Make, tmp_path: Path
) -> None:
    stores = [(snapshot, origin, 2**42) for snapshot, origin in pairs(8)]
    await make("").snapshot_cow(stores, TAG, 524288, timeout_s=5)
    calls = lines(tmp_path / "calls")
    assert [call.split()[-2:] for call in calls] == [[s, f"{VG}/{o}"] for s, o, _ in stores]
    assert min(map(len, calls)) > LONGEST
    (tmp_path / "calls").unlink()
    with pytest.raises(LvmFailed):
        await make("exit $(($(wc -l < calls) / 3))").snapshot_cow(stores, TAG, 524288, timeout_s=5)
    assert len(lines(tmp_path / "calls")) == 3


async def test_processes_for_lines_too_long_have_one_deadline_together(
    make: Make, tmp_path: Path
) -> None:
    stores = [(snapshot, origin, 2**42) for snapshot, origin in pairs(8)]
    lvm = make("sleep 0.3")
    with pytest.raises(StorageOverdue):
        await lvm.snapshot_cow(stores, TAG, 524288, timeout_s=0.7)
    assert len(lines(tmp_path / "calls")) <= 3
    async with asyncio.timeout(10):
        while lvm.has_left_any:
            await asyncio.sleep(0.01)
