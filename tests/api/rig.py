"""The real service over files, served on a real Unix socket, and a client for it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from blockd.api.app import make_app
from blockd.api.peer import Peer
from blockd.api.server import serve_unix
from blockd.catalog import Catalog, open_catalog
from blockd.config import ObjectStorageSection
from blockd.daemon import open_images
from blockd.daemon.guests import no_guests
from blockd.domain.effects import SideEffects
from blockd.domain.units import GIB, MIB
from blockd.host.uptime import boot_id, uptime_s
from blockd.service import Service
from blockd.service.answers import Answers
from blockd.service.backups import Backups
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.doctor import Doctor
from blockd.service.events import Events
from blockd.service.groups import Groups
from blockd.service.host import Beside, Host, Tenancy
from blockd.service.job_steps import JobSteps
from blockd.service.jobs import Jobs
from blockd.service.losses import Losses
from blockd.service.operations import Operations
from blockd.service.pool_guard import PoolGuard
from blockd.service.pool_repair import PoolRepair
from blockd.service.shown_snapshots import ShownSnapshots
from blockd.service.snapshots import Snapshots
from blockd.service.steady_clock import SteadyClock
from blockd.service.transfers import Transfers
from blockd.service.trash import Trash
from blockd.service.upkeep import Upkeep
from blockd.service.volumes import Volumes
from tests.support.file_driver import FileDriver
from tests.support.service import DRIVERS, file_config

ZONE: Final = "xx-lab-1"
PROJECT: Final = "11111111-1111-4111-8111-111111111111"
OTHER_PROJECT: Final = "22222222-2222-4222-8222-222222222222"
ORGANIZATION: Final = "33333333-3333-4333-8333-333333333333"
NOBODY: Final = "99999999-9999-4999-8999-999999999999"
V1: Final = f"/block/v1/zones/{ZONE}"
V1ALPHA1: Final = f"/block/v1alpha1/zones/{ZONE}"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class Reply:
    """An answer, after checks that hold for each."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    body: Any = None

    def __post_init__(self) -> None:
        assert _UUID.fullmatch(self.headers["X-Request-Id"])
        assert "X-Total-Count" not in self.headers
        if self.headers["Content-Type"] == "application/json" and self.raw:
            self.body = json.loads(self.raw)
        if self.status >= 400:
            assert isinstance(self.body["type"], str), self.raw
            assert isinstance(self.body["message"], str), self.raw


@dataclass
class Api:
    """A client over the socket."""

    session: aiohttp.ClientSession

    async def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        params: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send `body` as JSON, or `raw` as it is."""
        data = raw if body is None else json.dumps(body).encode()
        stream = None if data is None else io.BytesIO(data)
        async with self.session.request(
            method, f"http://blockd{path}", data=stream, params=params, headers=headers
        ) as answer:
            return Reply(answer.status, answer.headers.copy(), await answer.read())

    async def ok(self, method: str, path: str, body: object = None, **more: Any) -> Any:
        """The body of an answer that must be a 200 or a 204."""
        reply = await self(method, path, body, **more)
        assert reply.status in (200, 204), reply
        return reply.body

    async def settled(self, path: str) -> Any:
        """The resource at `path`, once its status is no passing one."""
        async with asyncio.timeout(10):
            while True:
                resource = await self.ok("GET", path)
                if resource["status"] not in ("creating", "updating"):
                    return resource
                await asyncio.sleep(0)

    async def volume(self, prefix: str = V1, **fields: Any) -> Any:
        """A new volume, available."""
        body = {"from_empty": {"size": MIB}, **fields}
        made = await self.ok("POST", f"{prefix}/volumes", body)
        return await self.settled(f"{prefix}/volumes/{made['id']}")

    async def snapshot(self, volume_id: str, prefix: str = V1, **fields: Any) -> Any:
        """A new snapshot, available."""
        made = await self.ok("POST", f"{prefix}/snapshots", {"volume_id": volume_id, **fields})
        return await self.settled(f"{prefix}/snapshots/{made['id']}")


@dataclass
class Rig:
    """Everything a test may want to reach into."""

    api: Api
    app: web.Application
    socket: Path
    service: Service
    catalog: Catalog
    driver: FileDriver
    trash: Trash
    operations: Operations
    drivers: Mapping[str, FileDriver] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    admit: Callable[[Peer], bool] = field(default=lambda peer: True)

    def admits(self, peer: Peer) -> bool:
        """Ask `admit` as it is now."""
        return self.admit(peer)


@asynccontextmanager
async def service_over_files(
    root: Path, object_storage: ObjectStorageSection | None = None, default_class: str = "sbs"
) -> AsyncIterator[tuple[Service, Rig]]:
    """The service as the daemon wires it, with directories of files as its two classes."""
    config = file_config(root).model_copy(update={"object_storage": object_storage})
    async with AsyncExitStack() as stack:
        catalog = await stack.enter_async_context(open_catalog(root / "catalog.db"))
        drivers = {
            name: make(root / name, capacity_bytes=1000 * GIB) for name, make in DRIVERS.items()
        }
        driver = drivers[default_class]
        classes = StorageClasses(
            {name: StorageClass(name, each) for name, each in drivers.items()}, default_class
        )
        freezes, _, attachments = no_guests().verbs(
            config, catalog, classes, ShownSnapshots(catalog, classes)
        )
        operations = await stack.enter_async_context(
            Operations(catalog, classes, freezes, stop_s=5.0)
        )
        clock = SteadyClock(boot_id(), uptime_s)
        await clock.start(catalog)
        guard = PoolGuard(classes)
        trash = Trash(catalog, classes, operations, clock, guard, keep_s=3600.0)
        tenancy = Tenancy(ZONE, ORGANIZATION, PROJECT, frozenset({PROJECT, OTHER_PROJECT}))
        parts = catalog, classes, operations, trash, tenancy
        images = await stack.enter_async_context(open_images(config, SideEffects()))
        steps = JobSteps(catalog, classes, images, operations)
        jobs = await stack.enter_async_context(Jobs(catalog, steps, concurrency=2, keep_s=3600.0))
        backups = Backups(config.backup_folder, 2, classes, SideEffects(), uptime_s)
        doctor = Doctor(
            catalog, classes, images, operations, jobs, backups, PROJECT, second_look_s=0.01
        )
        snapshots = Snapshots(*parts, freezes)
        service = Service(
            Volumes(*parts, jobs),
            snapshots,
            Groups(*parts, freezes, snapshots),
            Host(
                tenancy,
                catalog,
                classes,
                operations,
                jobs,
                guard,
                Upkeep(catalog, classes),
                doctor,
                Beside(backups=backups.problems),
            ),
            Answers(catalog),
            Transfers(catalog, classes, trash, tenancy, images, jobs, max_import_bytes=100 * GIB),
            Events(catalog, classes),
            doctor,
            backups,
            PoolRepair(classes, guard, backups),
            attachments,
        )
        nothing: Any = None
        rig = Rig(
            nothing, nothing, root / "s", service, catalog, driver, trash, operations, drivers
        )
        losses = Losses(catalog, classes, operations, jobs, rig.lost.append)
        listening = asyncio.create_task(losses.run())
        try:
            yield service, rig
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


@asynccontextmanager
async def served(
    root: Path, object_storage: ObjectStorageSection | None = None, default_class: str = "sbs"
) -> AsyncIterator[Rig]:
    """The service, listening, with a client."""
    async with service_over_files(root, object_storage, default_class) as (service, rig):
        rig.app = make_app(service, _metrics, rig.admits)
        connector = aiohttp.UnixConnector(path=os.fspath(rig.socket))
        async with (
            serve_unix(rig.app, rig.socket),
            aiohttp.ClientSession(
                connector=connector, headers={"Accept-Encoding": "identity"}
            ) as session,
        ):
            rig.api = Api(session)
            yield rig


async def _metrics() -> bytes:
    return b"blockd_up 1\n"


async def exchange(socket: Path, request: bytes) -> bytes:
    """What comes back for bytes that no client library would send."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
        return head + body
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
