"""Short ways to do things to a thick class, and to wait for what its jobs make of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blockd.domain.job import Job, JobFilter, Phase
from blockd.domain.listing import Page, SnapshotFilter, VolumeFilter
from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.domain.states import TRANSIENT, Status
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume, Volume, VolumeChange
from tests.support import stamps
from tests.support.service import Running, file_config, running
from tests.support.thick_files import ThickFileDriver

SIZE = MIB + 512  # off the extent grid
OLD, NEW = 1, 2
_ALL = Page(size=100)
_DEADLINE_S = 20.0


@dataclass(frozen=True)
class Thick:
    """A running service with a thick class alone."""

    run: Running
    driver: ThickFileDriver

    async def create(
        self, size_bytes: int = SIZE, *, of: str | None = None, name: str = "v"
    ) -> Volume:
        """Begin a volume, or a clone."""
        new = NewVolume(name, None, size_bytes, 5000, (), None, of)
        return await self.run.service.volumes.create(new)

    async def volume(
        self, size_bytes: int = SIZE, *, of: str | None = None, name: str = "v"
    ) -> Volume:
        """A volume, or a clone, at rest."""
        return await self.settled(await self.create(size_bytes, of=of, name=name))

    async def grow(self, volume: Volume, size_bytes: int) -> Volume:
        """Begin to grow a volume."""
        change = VolumeChange(size_bytes=size_bytes)
        return await self.run.service.volumes.change(volume.id, change)

    async def snapshot(self, volume: Volume, name: str = "s") -> Snapshot:
        """A snapshot at rest."""
        new = NewSnapshot(volume.id, name, None, (), public=False)
        return await self.picture(await self.run.service.snapshots.create(new))

    async def stamped(self) -> tuple[Volume, Snapshot]:
        """A volume that holds NEW, and its snapshot that holds OLD."""
        volume = await self.volume()
        stamps.stamp(await self.path(volume), OLD)
        snapshot = await self.snapshot(volume)
        stamps.stamp(await self.path(volume), NEW)
        return volume, snapshot

    async def settled(self, volume: Volume) -> Volume:
        """The volume in no passing state."""
        async with asyncio.timeout(_DEADLINE_S):
            while (row := await self.run.service.volumes.get(volume.id)).status in TRANSIENT:
                await asyncio.sleep(0.002)
        return row

    async def picture(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot in no passing state."""
        async with asyncio.timeout(_DEADLINE_S):
            while (row := await self.run.service.snapshots.get(snapshot.id)).status in TRANSIENT:
                await asyncio.sleep(0.002)
        return row

    async def path(self, volume: Volume) -> str:
        """Where its bytes are used."""
        return (await self.run.service.volumes.device(volume.id)).path

    async def expect(self, volume: Volume, generation: int) -> None:
        """What all of the volume holds."""
        stamps.expect(await self.path(volume), generation)

    async def expect_snapshot(self, snapshot: Snapshot, generation: int) -> None:
        """What all of the snapshot holds; leaves nothing."""
        clone = await self.volume(snapshot.size_bytes, of=snapshot.id, name="look")
        await self.expect(clone, generation)
        await self.run.service.volumes.delete(clone.id)

    async def job_of(self, volume: Volume) -> Job:
        """The latest job of a volume, as it is now."""
        jobs, _ = await self.run.service.transfers.jobs(
            JobFilter(volume_id=volume.id), Page(size=1)
        )
        return jobs[0]

    async def ended(self, job: Job) -> Job:
        """The job at its end."""
        async with asyncio.timeout(_DEADLINE_S):
            while not (now := await self.run.service.transfers.job(job.id)).has_ended:
                await asyncio.sleep(0.002)
        return now

    async def until_phase(self, volume: Volume, phase: Phase) -> Job:
        """The latest job of a volume, once it has come so far."""
        async with asyncio.timeout(_DEADLINE_S):
            while (job := await self.job_of(volume)).phase is not phase:
                await asyncio.sleep(0.002)
        return job

    async def until_disk(self, disk: str, size_bytes: int = 0) -> None:
        """The disk is there, with at least so many bytes."""
        async with asyncio.timeout(_DEADLINE_S):
            while (await self.driver.disks()).get(disk, -1) < size_bytes:
                await asyncio.sleep(0.002)

    async def idle(self) -> None:
        """Nothing is under way."""
        async with asyncio.timeout(_DEADLINE_S):
            while (await self.run.service.host.health()).queued:
                await asyncio.sleep(0.002)

    async def rows(self) -> tuple[list[Volume], list[Snapshot]]:
        """Every row, those in the trash included."""
        volumes, _ = await self.run.catalog.read(
            lambda tx: tx.page_of_volumes(VolumeFilter(include_deleted=True), _ALL)
        )
        snapshots, _ = await self.run.catalog.read(
            lambda tx: tx.page_of_snapshots(SnapshotFilter(include_deleted=True), _ALL)
        )
        return volumes, snapshots

    async def expect_agreement(self) -> None:
        """Once idle: disks are those of rows and kept origins, and nothing is in the journal."""
        await self.idle()
        volumes, snapshots = await self.rows()
        kept = await self.run.catalog.read(lambda tx: tx.disks.kept_origins("bssd"))
        rows = [*volumes, *snapshots]
        assert not {row.status for row in rows} & TRANSIENT, rows
        wanted = {row.disk for row in rows if row.error is None or row.status is Status.AVAILABLE}
        assert set(await self.driver.disks()) == wanted | set(kept)
        assert await self.run.catalog.read(lambda tx: tx.intents()) == []
        assert await self.run.catalog.read(lambda tx: tx.jobs.unfinished()) == []
        assert self.run.classes["bssd"].promised == {}
        for volume in volumes:
            behind = await self.driver.disk_behind(volume.id)
            assert behind == (volume.disk if volume.status is Status.AVAILABLE else None), volume


@asynccontextmanager
async def thick(
    root: Path, driver: ThickFileDriver | None = None, keep_s: float = 86400.0
) -> AsyncIterator[Thick]:
    """The service; opened a second time on the same directory it is the daemon after a restart."""
    config = file_config(root)
    trash = config.trash.model_copy(update={"keep": keep_s})
    config = config.model_copy(update={"trash": trash})
    driver = driver or ThickFileDriver(root / "bssd")
    async with running(root, driver=driver, config=config, default_class="bssd") as run:
        yield Thick(run, driver)
