"""The daemon without LVM: its own wiring, a real catalog and real HTTP over sparse files.

Opened a second time on the same directory it is the daemon after a restart, recovery included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blockd.api.app import make_app
from blockd.api.server import serve_unix
from blockd.catalog import Catalog, open_catalog
from blockd.config import (
    ApiSection,
    CatalogSection,
    Config,
    DaemonSection,
    HostSection,
    ThinClassSection,
)
from blockd.daemon import open_guests, open_images, open_service
from blockd.domain.effects import SideEffects
from blockd.domain.pool_growth import GrowthBounds
from blockd.domain.units import GIB
from blockd.service import Service
from blockd.service.catalog_copies import CatalogCopies
from blockd.service.classes import StorageClass, StorageClasses
from tests.support.file_driver import FileDriver
from tests.support.thick_files import ThickFileDriver

ZONE = "xx-lab-1"
ORGANIZATION = "11111111-1111-4111-8111-111111111111"
PROJECT = "22222222-2222-4222-8222-222222222222"

#: The classes that tests of the service run with, and what their files are made by.
DRIVERS: dict[str, type[FileDriver]] = {"sbs": FileDriver, "bssd": ThickFileDriver}


@dataclass(frozen=True, slots=True)
class Running:
    """What a test may reach into; `socket` answers only within `served`."""

    service: Service
    catalog: Catalog
    classes: StorageClasses
    driver: FileDriver
    config: Config
    socket: Path
    copies: CatalogCopies | None = None


def file_config(root: Path) -> Config:
    """A configuration whose every path is below `root`."""
    return Config(
        host=HostSection(zone=ZONE, organization_id=ORGANIZATION, default_project_id=PROJECT),
        api=ApiSection(socket=root / "blockd.sock"),
        catalog=CatalogSection(path=root / "catalog.sqlite"),
        classes={"sbs": ThinClassSection(kind="thin", vg="files")},
        daemon=DaemonSection(examine_at_start=False),
    )


@asynccontextmanager
async def running(
    root: Path,
    *,
    driver: FileDriver | None = None,
    config: Config | None = None,
    effects: SideEffects | None = None,
    default_class: str = "sbs",
    keeps_copies: bool = False,
    bounds: GrowthBounds | None = None,
) -> AsyncIterator[Running]:
    """The service, as the daemon starts and stops it, with a single class.

    Args:
        driver: with gates or failures already set, for what recovery is to meet.
        effects: is told each commit, and each change of a driver made here.
        default_class: one of `DRIVERS`.
        keeps_copies: of the catalog, in the driver's `copy`.
        bounds: of the pool's extension.
    """
    config = config or file_config(root)
    if driver is None:
        make = DRIVERS[default_class]
        driver = make(root / default_class, capacity_bytes=1000 * GIB, effects=effects)
    only = StorageClass(default_class, driver, bounds=bounds or GrowthBounds())
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        catalog = await enter(open_catalog(config.catalog.path, effects))
        classes = StorageClasses({default_class: only}, default_class)
        copies = None
        if keeps_copies:
            copies = await enter(CatalogCopies(catalog, classes, effects or SideEffects()))
        images = await enter(open_images(config, effects or SideEffects()))
        guests = await enter(open_guests(config))
        states = list if copies is None else copies.states
        service = await enter(open_service(config, catalog, classes, images, guests, copies=states))
        yield Running(service, catalog, classes, driver, config, config.api.socket, copies)


@asynccontextmanager
async def served(root: Path, *, driver: FileDriver | None = None) -> AsyncIterator[Running]:
    """`running`, and listening on its Unix socket to everybody."""
    async with running(root, driver=driver) as started:
        app = make_app(started.service, _no_metrics, lambda _: True)
        async with serve_unix(app, started.socket):
            yield started


async def idle(run: Running) -> None:
    """Until nothing is under way."""
    async with asyncio.timeout(20):
        while (await run.service.host.health()).queued:
            await asyncio.sleep(0.005)


async def _no_metrics() -> bytes:
    return b""
