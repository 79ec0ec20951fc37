"""A daemon killed while LVM marks a merge: LVM must not begin, and then poll, one of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from blockd.domain.transfer import Progress
from blockd.domain.units import MIB
from blockd.host.command import wait_for_survivors
from blockd.storage.lvm_commands import vg_marker
from tests.contract.lab_drivers import THICK_DISK, THICK_VG, open_thick
from tests.kernel.test_thick import overwrite, roomy_snapshot, thick_with, until
from tests.support import stamps
from tests.support.vg_lock import vg_lock_held

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio]

SIZE = 128 * MIB


def commands_of_ours() -> list[str]:
    """What runs with our marker in its environment."""
    marker, found = vg_marker(THICK_VG).encode(), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


async def test_merge_whose_daemon_dies_while_lvm_marks_it_is_begun_by_the_next() -> None:
    async with thick_with(least_store_bytes=8 * MIB, first_percent=1.0) as (storage, driver):
        front = await storage.volume(SIZE, generation=1)
        snapshot = await roomy_snapshot(storage, driver, front)
        await overwrite(storage, front, 2)
        await storage.disconnect(front)
        victim = subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.merge_victim", front.disk, snapshot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert victim.stdin is not None
        assert victim.stdout is not None
        with victim.stdin, victim.stdout:
            assert await asyncio.to_thread(victim.stdout.readline) == b"ready\n"
            with vg_lock_held(THICK_VG):
                victim.stdin.write(b"\n")
                victim.stdin.flush()
                await until(lambda: any("lvconvert" in text for text in commands_of_ours()))
                await asyncio.sleep(0.5)  # it waits for the lock
                victim.kill()
                victim.wait()
                assert commands_of_ours()
        await wait_for_survivors(vg_marker(THICK_VG), 10)
        assert commands_of_ours() == []
        assert driver._kind(front.disk) == "snapshot-origin"  # marked, and not begun
        assert snapshot not in await driver.disks()
        async with open_thick(THICK_DISK, is_fresh=False, hidden=[front.disk]) as again:
            async with again.driver.turn():
                await again.driver.begin_merge(front.disk, snapshot)
            await again.driver.merged(front.disk, Progress())
            async with again.driver.turn():
                await again.driver.end_merge(front.disk, snapshot)
            stamps.expect(await again.connect(front), 1)
