"""The drivers of the configured storage classes: locks, LVM's configuration, fronts, pools."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import asdict

from blockd.catalog import Catalog
from blockd.config import Config, ThinClassSection
from blockd.daemon.groups import Groups, lvm_over, udev_runs
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError
from blockd.domain.pool_growth import GrowthBounds, PartBounds
from blockd.host.command import Companion, wait_for_survivors
from blockd.host.uevents import block_events
from blockd.host.vg_lock import vg_lock
from blockd.metrics import Metrics
from blockd.service.classes import StorageClass, StorageClasses
from blockd.storage import front_watchdog
from blockd.storage.lvm_commands import vg_marker
from blockd.storage.lvm_devices import candidate_devices
from blockd.storage.lvm_disks import ClassSettings, Surroundings
from blockd.storage.lvm_thick import LvmThick, ThickSettings, open_lvm_thick
from blockd.storage.lvm_thin import LvmThin, ThinSettings, open_lvm_thin
from blockd.storage.make_pool import make_group, make_pool

#: Clients give up after a minute, most of them, and are better told why before that.
_PATIENCE_S = 30.0


@asynccontextmanager
async def open_classes(
    config: Config, catalog: Catalog, groups: Groups, effects: SideEffects, metrics: Metrics
) -> AsyncIterator[StorageClasses]:
    """The drivers of the configured classes.

    Raises:
        StartError: a tool, volume group or pool is missing, or is not this catalog's.
    """
    async with AsyncExitStack() as stack:
        catalog_id = await catalog.read(lambda tx: tx.meta("catalog_id")) or ""
        watchdog = await stack.enter_async_context(
            Companion([sys.executable, "-I", "-S", front_watchdog.__file__])
        )
        around = Surroundings(
            catalog_id=catalog_id,
            mapper=groups.mapper,
            watchdog=watchdog,
            effects=effects,
            waited=metrics.queue_wait_s.observe,
            find_disks=groups.limit_lvm,
        )
        classes, drivers = {}, []
        for name, section in config.classes.items():
            driver = await stack.enter_async_context(_opened(config, name, around, groups.udev))
            await _bind(catalog, name, driver.vg_uuid)
            drivers.append(driver)
            thin = section if isinstance(section, ThinClassSection) else None
            bounds = (thin.overcommit, thin.high_water_percent, _growth(thin)) if thin else ()
            classes[name] = StorageClass(name, driver, *bounds)
            classes[name].patience_s = min(_PATIENCE_S, config.lvm.command_timeout)

        def device_changed(missed: bool) -> None:
            for driver in drivers:
                driver.device_changed(missed)

        await stack.enter_async_context(block_events(device_changed))
        yield StorageClasses(classes, config.first_class)


def _growth(section: ThinClassSection) -> GrowthBounds:
    """Extended at the high-water mark at the latest: nothing new is made above it."""
    high = section.high_water_percent
    return GrowthBounds(
        PartBounds(min(section.low_water_percent, high), section.extend_percent, section.extend_to),
        PartBounds(
            min(section.metadata_low_water_percent, high),
            section.metadata_extend_percent,
            section.metadata_extend_to,
        ),
    )


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
        devices=config.lvm.devices,
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


async def make_pools(config: Config, class_name: str | None, devices: list[str]) -> str:
    """Make the volume group and pool of a class; answers what was done, in one line.

    Raises:
        StartError: LVM refuses, or an LVM command of an earlier attempt still runs.
        StorageOverdue: LVM takes too long; it goes on.
    """
    name = class_name or config.first_class
    if name not in config.classes:
        raise StartError(f"there is no [classes.{name}] in the configuration")
    section, chosen = config.classes[name], devices or list(config.lvm.devices)
    udev = udev_runs(config)
    with (
        vg_lock(section.vg),
        lvm_over(config, section.vg, chosen or candidate_devices(), udev) as lvm,
    ):
        await wait_for_survivors(vg_marker(section.vg), config.lvm.command_timeout)
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
