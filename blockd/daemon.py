"""The one place that wires everything, in order of dependency, and takes it down again."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import asdict
from functools import partial
from pathlib import Path

import structlog

from blockd.api.app import make_app
from blockd.api.server import serve_tcp, serve_unix, tls_context
from blockd.api.tokens import read_tokens
from blockd.catalog import Catalog, Transaction, open_catalog
from blockd.config import Config, ThinClassSection
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError
from blockd.domain.front import FrontSpec
from blockd.host.command import Companion, companion, wait_for_survivors
from blockd.host.group import Group
from blockd.host.notify import inherited_socket, notify
from blockd.host.secrets import object_storage_keys
from blockd.host.vg_lock import vg_lock
from blockd.metrics import CountedEffects, Metrics
from blockd.service import Service
from blockd.service.answers import Answers
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.host import Host, Tenancy
from blockd.service.job_steps import JobSteps
from blockd.service.jobs import Jobs
from blockd.service.losses import Losses
from blockd.service.operations import Operations
from blockd.service.ports import Images
from blockd.service.snapshots import Snapshots
from blockd.service.steps import front_of
from blockd.service.transfers import Transfers
from blockd.service.trash import Trash
from blockd.service.volumes import Volumes
from blockd.storage import front_watchdog
from blockd.storage.dm import DeviceMapper, open_device_mapper
from blockd.storage.fronts import front_owner, resume_fronts
from blockd.storage.lvm_commands import LvmCommands, vg_marker
from blockd.storage.lvm_config import write_lvm_config
from blockd.storage.lvm_devices import candidate_devices
from blockd.storage.lvm_disks import ClassSettings
from blockd.storage.lvm_thick import LvmThick, ThickSettings, open_lvm_thick
from blockd.storage.lvm_thin import LvmThin, ThinSettings, open_lvm_thin
from blockd.storage.make_pool import make_group, make_pool
from blockd.storage.vg_queue import VgQueue
from blockd.transfer.no_images import NoImages

log = structlog.get_logger()


async def run(config: Config, listener: SideEffects | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        listener: is told each side effect (the crash tests').

    Raises:
        StartError: something is missing; one line says what.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics()
    effects = CountedEffects(metrics, listener or SideEffects())
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        catalog = await enter(open_catalog(config.catalog.path, effects))
        classes = await enter(open_classes(config, catalog, effects, metrics))
        images = await enter(open_images(config, effects))
        service = await enter(open_service(config, catalog, classes, images, metrics.count_loss))

        async def page_of_metrics() -> bytes:
            health = await service.host.health()
            return metrics.render(health.pools, health.queued)

        await enter(_serve(config, service, page_of_metrics))
        log.info("ready", zone=config.host.zone, classes=list(config.classes))
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("stopping")


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
        classes = {}
        for name, section in config.classes.items():
            opened = _opened(
                config,
                name,
                catalog_id,
                mapper,
                watchdog,
                effects,
                metrics.queue_wait_s.observe,
                limit_lvm,
                udev=udev,
            )
            driver = await stack.enter_async_context(opened)
            await _bind(catalog, name, driver.vg_uuid)
            thin = section if isinstance(section, ThinClassSection) else None
            bounds = (thin.overcommit, thin.high_water_percent) if thin else ()
            classes[name] = StorageClass(name, driver, *bounds)
        yield StorageClasses(classes, config.first_class)


def _opened(
    config: Config,
    name: str,
    catalog_id: str,
    mapper: DeviceMapper,
    watchdog: Companion,
    effects: SideEffects,
    waited: Callable[[float], None],
    find_disks: Callable[[], Awaitable[None]],
    *,
    udev: bool,
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
    with_all = (catalog_id, mapper, watchdog, effects, waited, find_disks)
    if isinstance(section, ThinClassSection):
        return open_lvm_thin(ThinSettings(**asdict(common), pool=section.pool), *with_all)
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
    return open_lvm_thick(settings, *with_all)


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


@asynccontextmanager
async def open_images(config: Config, effects: SideEffects) -> AsyncIterator[Images]:
    """Images in the configured object storage, or none where there is none.

    Raises:
        StartError: there are no credentials, or no qemu-img.
    """
    section, transfers = config.object_storage, config.transfers
    if section is None:
        yield NoImages()
        return
    # Only here: a host without object storage needs neither the memory nor the programs.
    from blockd.transfer import images, qemu_img, s3  # noqa: PLC0415
    from blockd.transfer.bandwidth import Bandwidth  # noqa: PLC0415

    endpoint = s3.Endpoint(
        section.endpoint.rstrip("/"),
        section.region,
        section.style == "virtual",
        None if section.ca_file is None else str(section.ca_file),
    )
    settings = images.TransferSettings(
        transfers.part_size,
        transfers.max_parts,
        transfers.parallel,
        transfers.scratch,
        transfers.max_scratch,
    )
    async with s3.open_object_store(
        endpoint,
        s3.Keys(*object_storage_keys(section.credentials)),
        effects,
        patience_s=transfers.patience,
        bandwidth=Bandwidth(transfers.bandwidth),
        connections=transfers.concurrency * (transfers.parallel + 2),
    ) as store:
        yield images.Images(store, qemu_img.QemuImg(transfers.memory), settings)


@asynccontextmanager
async def open_service(
    config: Config,
    catalog: Catalog,
    classes: StorageClasses,
    images: Images,
    count_loss: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Service]:
    """The verbs over catalog and classes; what an earlier daemon left unfinished goes on.

    Args:
        count_loss: is told the class of each snapshot that is lost.
    """
    host = config.host
    tenancy = Tenancy(
        host.zone,
        host.organization_id,
        host.default_project_id,
        frozenset({host.default_project_id, *(project.id for project in host.projects)}),
    )
    problems: list[str] = []
    for storage_class in classes:
        fronts, hidden = await catalog.read(partial(_disks_at_start, storage_class))
        problems += await storage_class.driver.start(fronts, hidden)
    for problem in problems:
        log.error("not available", problem=problem)
    stop_s = config.daemon.stop_timeout
    async with Operations(catalog, classes, stop_s=stop_s) as operations:
        await operations.recover()
        trash = Trash(
            catalog,
            classes,
            operations,
            keep_s=config.trash.keep,
            gives_room=config.trash.policy == "trash",
        )
        steps = JobSteps(catalog, classes, images, operations)
        concurrency, keep_jobs_s = config.transfers.concurrency, config.transfers.keep_jobs
        tasks = [asyncio.create_task(trash.run(), name="trash")]
        try:
            async with Jobs(catalog, steps, concurrency=concurrency, keep_s=keep_jobs_s) as jobs:
                await jobs.recover()
                losses = Losses(catalog, classes, operations, jobs, count_loss)
                tasks.append(asyncio.create_task(losses.run(), name="losses"))
                yield Service(
                    volumes=Volumes(catalog, classes, operations, trash, tenancy, jobs),
                    snapshots=Snapshots(catalog, classes, operations, trash, tenancy),
                    host=Host(tenancy, classes, operations, jobs, problems),
                    answers=Answers(catalog),
                    transfers=Transfers(
                        catalog,
                        classes,
                        trash,
                        tenancy,
                        images,
                        jobs,
                        max_import_bytes=config.transfers.max_import_size,
                    ),
                )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _disks_at_start(
    storage_class: StorageClass, tx: Transaction
) -> tuple[list[FrontSpec], list[str]]:
    """The fronts that shall be up, and the disks that have none but are needed all the same."""
    volumes = tx.volumes_with_fronts(storage_class.name)
    if not storage_class.is_thick:
        return [front_of(volume) for volume in volumes], []
    reverting = tx.disks.reverting(storage_class.name)
    fronts = [front_of(volume) for volume in volumes if volume.id not in reverting]
    return fronts, tx.disks.hidden(storage_class.name)


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


@asynccontextmanager
async def _serve(
    config: Config, service: Service, metrics: Callable[[], Awaitable[bytes]]
) -> AsyncIterator[None]:
    group = Group(config.api.group)
    app = make_app(service, metrics, lambda peer: group.admits(peer.uid, peer.gid))
    given = inherited_socket()
    path = config.api.socket
    if given is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    where: Path | int = path if given is None else given.detach()
    stop_s = config.daemon.stop_timeout
    async with AsyncExitStack() as stack:
        if config.tcp is not None:
            host, _, port = config.tcp.listen.rpartition(":")
            tls = tls_context(config.tcp.certificate, config.tcp.key)
            by_token = make_app(service, metrics, lambda _: False, read_tokens(config.tcp.tokens))
            listening = serve_tcp(by_token, host, int(port), tls, close_within_s=stop_s)
            await stack.enter_async_context(listening)
        await stack.enter_async_context(
            serve_unix(app, where, gid=group.gid, close_within_s=stop_s)
        )
        yield


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
