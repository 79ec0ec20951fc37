"""The volume groups of the configuration: locked, and with LVM's configuration for them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from blockd.config import Config, ThinClassSection
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError
from blockd.host.command import wait_for_survivors
from blockd.host.vg_lock import vg_lock
from blockd.storage.dm import DeviceMapper, open_device_mapper
from blockd.storage.fronts import front_owner, resume_fronts
from blockd.storage.lvm_commands import LvmCommands, vg_marker
from blockd.storage.lvm_config import POOL_MARK_PERCENT, write_lvm_config
from blockd.storage.lvm_devices import candidate_devices
from blockd.storage.vg_queue import VgQueue


class Groups:
    """What a start does to the volume groups before it knows the catalog, or its classes."""

    def __init__(self, config: Config, mapper: DeviceMapper, effects: SideEffects) -> None:
        self._config, self._effects = config, effects
        self.mapper = mapper
        self.udev = udev_runs(config)

    def resume(self, catalog_id: str) -> None:
        """First of all: resume what a crash left suspended."""
        for name in self._config.classes:
            resume_fronts(self.mapper, front_owner(name, catalog_id), self._effects)

    async def calm(self) -> None:
        """Wait until no LVM command of an earlier daemon runs, and write our `lvm.conf`.

        Raises:
            StartError: one does not end, or no disk holds a volume group.
        """
        for section in self._config.classes.values():
            await wait_for_survivors(vg_marker(section.vg), self._config.lvm.command_timeout)
        await self.limit_lvm()

    async def limit_lvm(self, beside: LvmCommands | None = None) -> None:
        """See `_limit_lvm`."""
        await _limit_lvm(self._config, self.udev, beside)

    def lvm(self, vg: str) -> LvmCommands:
        """LVM on one of them, before there is a queue for it."""
        return LvmCommands(
            vg,
            self._config.lvm.system_dir,
            VgQueue(lambda _: None),
            self._effects,
            udev=self.udev,
            timeout_s=self._config.lvm.command_timeout,
        )


@asynccontextmanager
async def open_groups(config: Config, effects: SideEffects) -> AsyncIterator[Groups]:
    """The volume groups, locked against other daemons for the length of the block.

    Raises:
        StartError: one is served by another blockd, or there is no device-mapper.
    """
    with ExitStack() as stack:
        for section in config.classes.values():
            stack.enter_context(vg_lock(section.vg))
        yield Groups(config, stack.enter_context(open_device_mapper(effects)), effects)


async def _limit_lvm(config: Config, udev: bool, beside: LvmCommands | None) -> None:
    """Our `lvm.conf`, in which LVM opens the disks of our volume groups and nothing else.

    Without `[lvm] devices` LVM is asked which these are, with all devices allowed but fronts and
    LVs; that is done at start, and again when `beside` seems to miss a disk, in whose turn we are.
    """
    devices, vgs = list(config.lvm.devices), {section.vg for section in config.classes.values()}
    if not devices:
        with lvm_over(config, min(vgs), candidate_devices(), udev, beside) as lvm:
            devices = [volume.device for volume in await lvm.pvs() if volume.vg in vgs]
    if not devices:
        raise StartError(
            f"no disk holds volume group {' or '.join(sorted(vgs))}: "
            "`blockd make-pool DEVICE` makes volume group and pool"
        )
    _write_lvm_config(config, config.lvm.system_dir, devices, udev)


def _write_lvm_config(config: Config, folder: Path, devices: Sequence[str], udev: bool) -> None:
    thin = [item for item in config.classes.values() if isinstance(item, ThinClassSection)]
    is_above = any(section.high_water_percent > POOL_MARK_PERCENT for section in thin)
    write_lvm_config(
        folder,
        devices,
        udev=udev,
        reserved_memory_kib=config.lvm.reserved_memory_kib,
        pool_mark_percent=100 if is_above else POOL_MARK_PERCENT,
    )


@contextmanager
def lvm_over(
    config: Config,
    vg: str,
    devices: Sequence[str],
    udev: bool,
    beside: LvmCommands | None = None,
) -> Iterator[LvmCommands]:
    """LVM over other devices than the daemon's, in a configuration of its own.

    Raises StartError when LVM is not installed.

    Args:
        beside: in whose turn this is, if in one: nothing is begun in it beside what we leave.
    """
    parent = config.lvm.system_dir.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="lvm-", dir=parent))
    if beside is not None:
        lvm = beside.elsewhere(folder)
    else:
        lvm = LvmCommands(
            vg,
            folder,
            VgQueue(lambda _: None),
            SideEffects(),
            udev=udev,
            timeout_s=config.lvm.command_timeout,
        )
    try:
        _write_lvm_config(config, folder, devices, udev)
        yield lvm
    finally:
        # Without it LVM that was left, and may not have read it yet, would use the host's.
        if not lvm.has_left_any:
            shutil.rmtree(folder)


def udev_runs(config: Config) -> bool:
    """Whether udevd makes device nodes, and LVM waits for it."""
    if config.lvm.udev == "auto":
        return Path("/run/udev/control").exists()
    return config.lvm.udev == "yes"
