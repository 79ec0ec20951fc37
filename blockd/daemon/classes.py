"""The drivers of the configured storage classes: locks, LVM's configuration, fronts, pools."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import asdict
from pathlib import Path

from blockd.catalog import Catalog
from blockd.config import Config, ThinClassSection
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError
from blockd.host.command import companion, wait_for_survivors
from blockd.host.vg_lock import vg_lock
from blockd.metrics import Metrics
from blockd.service.classes import StorageClass, StorageClasses
from blockd.storage import front_watchdog
from blockd.storage.dm import open_device_mapper
from blockd.storage.fronts import front_owner, resume_fronts
from blockd.storage.lvm_commands import LvmCommands, vg_marker
from blockd.storage.lvm_config import write_lvm_config
from blockd.storage.lvm_devices import candidate_devices
from blockd.storage.lvm_disks import ClassSettings, Surroundings
from blockd.storage.lvm_thick import LvmThick, ThickSettings, open_lvm_thick
from blockd.storage.lvm_thin import LvmThin, ThinSettings, open_lvm_thin
from blockd.storage.make_pool import make_group, make_pool
from blockd.storage.vg_queue import VgQueue


@asynccontextmanager
async def open_classes(
    config: Config, catalog: Catalog, effects: SideEffects, metrics: Metrics
) -> AsyncIterator[StorageClasses]:
    """The drivers of the configured classes, with their fronts up.

    Raises:
        StartError: a tool, volume group or pool is missing, or is not this catalog's.
    """
    async with AsyncExitStack() as stack:
        # First the locks, then what a crash left suspended, then what LVM may still be doing.
        for section in config.classes.values():
            stack.enter_context(vg_lock(section.vg))
        mapper = stack.enter_context(open_device_mapper(effects))
        catalog_id = await catalog.read(lambda tx: tx.meta("catalog_id")) or ""
        for name in config.classes:
            resume_fronts(mapper, front_owner(name, catalog_id), effects)
        for section in config.classes.values():
            await wait_for_survivors(vg_marker(section.vg), config.lvm.command_timeout)
        watchdog = await stack.enter_async_context(
            companion([sys.executable, "-I", "-S", front_watchdog.__file__])
        )
        udev = _udev_runs(config)

        async def limit_lvm() -> None:
            await _limit_lvm(config, udev)

        await limit_lvm()
        around = Surroundings(
            catalog_id=catalog_id,
            mapper=mapper,
            watchdog=watchdog,
            effects=effects,
            waited=metrics.queue_wait_s.observe,
            find_disks=limit_lvm,
        )
        classes = {}
        for name, section in config.classes.items():
            driver = await stack.enter_async_context(_opened(config, name, around, udev))
            await _bind(catalog, name, driver.vg_uuid)
            thin = section if isinstance(section, ThinClassSection) else None
            bounds = (thin.overcommit, thin.high_water_percent) if thin else ()
            classes[name] = StorageClass(name, driver, *bounds)
        yield StorageClasses(classes, config.first_class)


def _opened(
    config: Config, name: str, around: Surroundings, udev: bool
) -> AbstractAsyncContextManager[LvmThin | LvmThick]:
    """The driver of a class, not entered yet."""
    section = config.classes[name]
    common = ClassSettings(
        name=name,
        vg=section.vg,
        system_dir=config.lvm.system_dir,
        udev=udev,
        command_timeout_s=config.lvm.command_timeout,
        max_suspend_s=config.lvm.max_suspend,
    )
    if isinstance(section, ThinClassSection):
        return open_lvm_thin(ThinSettings(**asdict(common), pool=section.pool), around)
    settings = ThickSettings(
        **asdict(common),
        reserve_bytes=section.reserve,
        max_snapshots=section.max_snapshots,
        first_percent=section.snapshot_size_percent,
        least_store_bytes=section.snapshot_size_least,
        grow_at_percent=section.snapshot_grow_at_percent,
        grow_percent=section.snapshot_grow_percent,
        chunk_bytes=section.chunk,
    )
    return open_lvm_thick(settings, around)


async def _limit_lvm(config: Config, udev: bool) -> None:
    """Our `lvm.conf`, in which LVM opens the disks of our volume groups and nothing else.

    Without `[lvm] devices` LVM is asked which these are, with all devices allowed but fronts and
    LVs; that is done at start, and again when a disk seems to be missing.
    """
    devices, vgs = list(config.lvm.devices), {section.vg for section in config.classes.values()}
    if not devices:
        with _lvm_over(config, min(vgs), candidate_devices(), udev) as lvm:
            devices = [volume.device for volume in await lvm.pvs() if volume.vg in vgs]
    if not devices:
        raise StartError(
            f"no disk holds volume group {' or '.join(sorted(vgs))}: "
            "`blockd make-pool DEVICE` makes volume group and pool"
        )
    _write_lvm_config(config, config.lvm.system_dir, devices, udev)


def _write_lvm_config(config: Config, folder: Path, devices: Sequence[str], udev: bool) -> None:
    write_lvm_config(folder, devices, udev=udev, reserved_memory_kib=config.lvm.reserved_memory_kib)


@contextmanager
def _lvm_over(config: Config, vg: str, devices: Sequence[str], udev: bool) -> Iterator[LvmCommands]:
    """LVM over other devices than the daemon's, in a configuration of its own."""
    beside = config.lvm.system_dir.parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lvm-", dir=beside) as name:
        folder = Path(name)
        _write_lvm_config(config, folder, devices, udev)
        yield LvmCommands(
            vg,
            folder,
            VgQueue(lambda _: None),
            SideEffects(),
            udev=udev,
            timeout_s=config.lvm.command_timeout,
        )


async def make_pools(config: Config, class_name: str | None, devices: list[str]) -> str:
    """Make the volume group and pool of a class; answers what was done, in one line."""
    name = class_name or config.first_class
    if name not in config.classes:
        raise StartError(f"there is no [classes.{name}] in the configuration")
    section, chosen = config.classes[name], devices or list(config.lvm.devices)
    udev = _udev_runs(config)
    with (
        vg_lock(section.vg),
        _lvm_over(config, section.vg, chosen or candidate_devices(), udev) as lvm,
    ):
        if isinstance(section, ThinClassSection):
            return await make_pool(lvm, section.pool, chosen)
        return await make_group(lvm, chosen)


async def _bind(catalog: Catalog, name: str, vg_uuid: str) -> None:
    """A catalog belongs to its volume group for good: another of the same name is not it."""
    key = f"vg_uuid.{name}"
    known = await catalog.read(lambda tx: tx.meta(key))
    if known is None:
        await catalog.write("class bound", lambda tx: tx.put_meta(key, vg_uuid))
    elif known != vg_uuid:
        raise StartError(
            f"class {name}: the volume group has the uuid {vg_uuid}, the catalog's volumes "
            f"are in {known}: restore the right catalog, or bring back the right disks"
        )


def _udev_runs(config: Config) -> bool:
    if config.lvm.udev == "auto":
        return Path("/run/udev/control").exists()
    return config.lvm.udev == "yes"
