"""The daemon's own wiring over files, a real object store behind a proxy that can misbehave."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blockd.domain.effects import SideEffects
from blockd.domain.job import Compression, Job, JobFilter, NewExport, NewImport
from blockd.domain.listing import Page
from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.domain.states import TRANSIENT
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume
from tests.support.faulty_store import FaultyStore
from tests.support.object_store import BUCKET, Server, quick_transfers
from tests.support.service import Running, file_config, running

KEY = "daily/monday.qcow2"
_DEADLINE_S = 60.0


@dataclass
class TransferRig:
    """A running service, and what its transfers talk to."""

    running: Running
    store: FaultyStore

    @property
    def server(self) -> Server:
        """The store itself."""
        return self.store.server

    async def snapshot(self, *, data_mib: int = 24, size_bytes: int = 300 * MIB + 512) -> Snapshot:
        """A snapshot of scattered data: random, zeros, and a little at the very end."""
        volumes = self.running.service.volumes
        new = NewVolume("v", None, size_bytes, 5000, (), None, None)
        volume = await volumes.create(new)
        await self._until(lambda: volumes.get(volume.id))
        chance = random.Random(7)
        with open((await volumes.device(volume.id)).path, "r+b") as device:
            for number in range(data_mib):
                device.seek(chance.randrange(size_bytes // MIB - 2) * MIB + 4096 * number)
                device.write(bytes(MIB // 2) if number % 8 == 7 else os.urandom(MIB))
            device.seek(size_bytes - 512)
            device.write(os.urandom(512))
            os.fsync(device.fileno())
        snapshots = self.running.service.snapshots
        taken = await snapshots.create(NewSnapshot(volume.id, "s", None, (), public=False))
        return await self._until(lambda: snapshots.get(taken.id))

    async def export(
        self, snapshot: Snapshot, key: str = KEY, compression: Compression = Compression.NONE
    ) -> Job:
        """Begin an export; the job as it is at first."""
        new = NewExport(BUCKET, key, compression)
        await self.running.service.transfers.export(snapshot.id, new)
        return await self.job_of(snapshot.id)

    async def restore(self, key: str = KEY, size_bytes: int | None = None) -> tuple[Snapshot, Job]:
        """Begin an import; its snapshot and job as they are at first."""
        new = NewImport(BUCKET, key, "imported", None, size_bytes, (), False, None)
        snapshot = await self.running.service.transfers.import_(new)
        return snapshot, await self.job_of(snapshot.id)

    async def job_of(self, snapshot_id: str) -> Job:
        """The latest job of a snapshot."""
        jobs, _ = await self.running.service.transfers.jobs(
            JobFilter(snapshot_id=snapshot_id), Page(size=1)
        )
        return jobs[0]

    async def ended(self, job: Job) -> Job:
        """The job at its end, when nothing is left to be undone either."""
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                now = await self.running.service.transfers.job(job.id)
                if now.has_ended and not now.phase:
                    return now
                await asyncio.sleep(0.01)

    def disk(self, snapshot: Snapshot) -> Path:
        """The file with a snapshot's bytes."""
        return self.running.driver._disk_path(snapshot.disk)

    def uploads(self) -> list[str]:
        """Uploads that were begun at the store and not ended, asked for behind the proxy's back."""
        return self.server.uploads()

    async def _until(self, get: object) -> Snapshot:
        async with asyncio.timeout(_DEADLINE_S):
            while (row := await get()).status in TRANSIENT:  # type: ignore[operator]
                await asyncio.sleep(0.005)
        return row  # type: ignore[no-any-return]


@asynccontextmanager
async def transfer_rig(
    root: Path,
    store: FaultyStore,
    effects: SideEffects | None = None,
    default_class: str = "sbs",
    **transfers: object,
) -> AsyncIterator[TransferRig]:
    """The service; opened a second time on the same directory it is the daemon after a restart."""
    config = file_config(root).model_copy(
        update={"object_storage": store.section, "transfers": quick_transfers(**transfers)}
    )
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(
            running(root, config=config, effects=effects, default_class=default_class)
        )
        yield TransferRig(started, store)


def check_image(image: Path, disk: Path) -> None:
    """qemu-img finds no error in the image, and the same bytes as on the disk."""
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True, timeout=60)
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, disk]
    subprocess.run(compare, check=True, timeout=60)


async def qemu_img_pid() -> int:
    """The process id of our own qemu-img, once it runs: a child of the jail that is our child."""
    async with asyncio.timeout(20):
        while True:
            for jail in _children(os.getpid()):
                for child in _children(jail):
                    if Path(f"/proc/{child}/comm").read_text() == "qemu-img\n":
                        return child
            await asyncio.sleep(0.005)


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listed in lists for child in listed.read_text().split()]
