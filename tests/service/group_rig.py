"""The service with both classes, for groups that go over both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blockd.catalog import Catalog, open_catalog
from blockd.daemon import open_images, open_service
from blockd.domain.effects import SideEffects
from blockd.domain.group import NewGroup
from blockd.domain.listing import Page, SnapshotFilter
from blockd.domain.snapshot import Quiesce, Snapshot
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume
from blockd.service import Service
from blockd.service.classes import StorageClass, StorageClasses
from tests.support import stamps
from tests.support.file_driver import FileDriver
from tests.support.service import DRIVERS, file_config

SIZE = 2 * MIB
_ALL = Page(size=100)


@dataclass
class Host:
    """The service with both classes."""

    service: Service
    catalog: Catalog
    drivers: dict[str, FileDriver]
    classes: StorageClasses

    async def volume(self, class_name: str, generation: int) -> str:
        new = NewVolume("v", None, SIZE, 5000, (), class_name, None)
        volume = await self.service.volumes.create(new)
        await self.idle()
        stamps.stamp((await self.service.volumes.device(volume.id)).path, generation)
        return volume.id

    async def idle(self) -> None:
        async with asyncio.timeout(20):
            while (await self.service.host.health()).queued:
                await asyncio.sleep(0.005)

    async def problems(self) -> Sequence[str]:
        return (await self.service.host.health()).problems

    async def snapshots(self) -> list[Snapshot]:
        wanted = SnapshotFilter(include_deleted=True)
        rows, _ = await self.catalog.read(lambda tx: tx.page_of_snapshots(wanted, _ALL))
        return rows

    async def expect_nothing_left(self, volumes: int) -> None:
        """No snapshot, no disk but the volumes', nothing promised, nothing that stands still."""
        await self.idle()
        assert await self.snapshots() == []
        disks = [disk for driver in self.drivers.values() for disk in await driver.disks()]
        assert len(disks) == volumes
        await self.expect_quiet()

    async def expect_quiet(self) -> None:
        assert await self.catalog.read(lambda tx: tx.intents()) == []
        for name, driver in self.drivers.items():
            assert not driver.stands_still
            assert self.classes[name].promised == {}


@asynccontextmanager
async def host(
    root: Path, effects: SideEffects | None = None, **more: float
) -> AsyncIterator[Host]:
    """Opened a second time on the same directory it is the daemon after a restart."""
    config = file_config(root)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        catalog = await enter(open_catalog(config.catalog.path, effects))
        drivers = {name: make(root / name, effects=effects) for name, make in DRIVERS.items()}
        classes = StorageClasses(
            {name: StorageClass(name, each, **more) for name, each in drivers.items()}, "sbs"
        )
        images = await enter(open_images(config, SideEffects()))
        service = await enter(open_service(config, catalog, classes, images))
        yield Host(service, catalog, drivers, classes)


def group_of(*volume_ids: str, quiesce: Quiesce = Quiesce.AUTO) -> NewGroup:
    return NewGroup(volume_ids, "night", None, quiesce)


async def expect_bytes(run: Host, snapshot: Snapshot, generation: int) -> None:
    async with run.drivers[snapshot.storage_class].reading(snapshot.disk) as disk:
        stamps.expect(disk.path, generation, 0, SIZE)
