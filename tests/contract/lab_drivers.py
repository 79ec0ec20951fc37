"""How the drivers on LVM are made for tests: each on a volume group of its own, in the lab."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from blockd.domain.effects import SideEffects
from blockd.host.command import companion
from blockd.storage import front_watchdog
from blockd.storage.dm import open_device_mapper
from blockd.storage.lvm_commands import LvmCommands
from blockd.storage.lvm_config import write_lvm_config
from blockd.storage.lvm_disks import Surroundings
from blockd.storage.lvm_thick import ThickSettings, open_lvm_thick
from blockd.storage.lvm_thin import ThinSettings, open_lvm_thin
from blockd.storage.make_pool import make_group, make_pool
from blockd.storage.vg_queue import VgQueue
from tests.contract.storage import ThickStorage, ThinStorage

#: The lab's disks that may be overwritten; elsewhere there are none of these names.
LAB_DISK, THICK_DISK = Path("/dev/ubda"), Path("/dev/ubdc")

VG, POOL, THICK_VG = "contract", "pool", "contractthick"
SYSTEM_DIR, THICK_DIR = Path("/run/blockd-contract/lvm"), Path("/run/blockd-contract/lvm-thick")


async def _no_search(_: LvmCommands) -> None:
    """The disk stays what it is."""


@asynccontextmanager
async def surroundings(effects: SideEffects) -> AsyncIterator[Surroundings]:
    """What a driver has around it in the daemon."""
    watchdog = companion([sys.executable, "-I", "-S", front_watchdog.__file__])
    with open_device_mapper(effects) as mapper:
        async with watchdog as process:
            yield Surroundings(
                catalog_id="contract",
                mapper=mapper,
                watchdog=process,
                effects=effects,
                waited=lambda _: None,
                find_disks=_no_search,
            )


@asynccontextmanager
async def open_thin(disk: Path) -> AsyncIterator[ThinStorage]:
    """A started `LvmThin` on a volume group of its own on `disk`; what was in it is erased.

    The one place that knows how the thin driver is made.
    """
    effects = SideEffects()
    write_lvm_config(SYSTEM_DIR, [str(disk)], udev=False, reserved_memory_kib=512)
    queue = VgQueue(lambda _: None)
    commands = LvmCommands(VG, SYSTEM_DIR, queue, effects, udev=False, timeout_s=60)
    await make_pool(commands, POOL, [str(disk)])
    settings = ThinSettings(
        name="sbs",
        vg=VG,
        pool=POOL,
        system_dir=SYSTEM_DIR,
        udev=False,
        command_timeout_s=60,
        max_suspend_s=10,
    )
    async with surroundings(effects) as around, open_lvm_thin(settings, around) as driver:
        await driver.start([])
        storage = ThinStorage(driver, VG, POOL, run_lvm)
        await storage.clean()
        yield storage


@asynccontextmanager
async def open_thick(
    disk: Path, *, hidden: Sequence[str] = (), is_fresh: bool = True, **changes: Any
) -> AsyncIterator[ThickStorage]:
    """A started `LvmThick` on a volume group of its own on `disk`.

    The one place that knows how the thick driver is made.

    Args:
        is_fresh: what was in it is erased.
        changes: to its settings.
    """
    effects = SideEffects()
    write_lvm_config(THICK_DIR, [str(disk)], udev=False, reserved_memory_kib=512)
    queue = VgQueue(lambda _: None)
    commands = LvmCommands(THICK_VG, THICK_DIR, queue, effects, udev=False, timeout_s=60)
    await make_group(commands, [str(disk)])
    common: dict[str, Any] = {
        "name": "bssd",
        "vg": THICK_VG,
        "system_dir": THICK_DIR,
        "udev": False,
        "command_timeout_s": 60,
        "max_suspend_s": 10,
        "max_snapshots": 16,
    }
    settings = ThickSettings(**common | changes)
    async with surroundings(effects) as around, open_lvm_thick(settings, around) as driver:
        await driver.start([], hidden)
        storage = ThickStorage(driver, THICK_VG, partial(run_lvm, system_dir=THICK_DIR))
        if is_fresh:
            await storage.clean()
        yield storage


def run_lvm(verb: str, *args: str, system_dir: Path = SYSTEM_DIR) -> None:
    """One LVM command by hand, in the driver's LVM configuration."""
    env = {**os.environ, "LVM_SYSTEM_DIR": str(system_dir), "DM_DISABLE_UDEV": "1"}
    subprocess.run(["lvm", verb, "-qq", *args], env=env, check=True)
