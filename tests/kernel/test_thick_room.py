"""Room that somebody adds to a thick class's volume group."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from blockd.domain.units import GIB, MIB
from blockd.storage.lvm_thick import LvmThick
from tests.contract.lab_drivers import THICK_VG
from tests.kernel.test_thick import thick_with

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio]

#: Not among those that the driver's LVM configuration lets it open.
OTHER = Path("/dev/ubdb")


def by_hand(verb: str, *args: str) -> None:
    """LVM as an administrator runs it, with the host's configuration."""
    env = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run(["lvm", verb, "-qq", "-y", *args], env=env, check=True)


async def free_bytes(driver: LvmThick) -> int:
    free = (await driver.pool()).free_bytes
    assert free is not None
    return free


async def test_room_is_noticed_when_a_disk_is_added_and_when_others_remove_an_lv() -> None:
    async with thick_with() as (storage, driver):
        before = await free_bytes(driver)
        storage.lvm("lvcreate", "-y", "-L", "256m", "-Wn", "-n", "theirs", THICK_VG)
        try:
            await driver.recount()
            assert await free_bytes(driver) == before - 256 * MIB
        finally:
            storage.lvm("lvremove", "-y", f"{THICK_VG}/theirs")
        await driver.recount()
        assert await free_bytes(driver) == before
        by_hand("vgextend", THICK_VG, str(OTHER))
        try:
            await driver.recount()
            assert await free_bytes(driver) > before + 3 * GIB
        finally:
            by_hand("vgreduce", THICK_VG, str(OTHER))
            by_hand("pvremove", str(OTHER))
