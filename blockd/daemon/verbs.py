"""The verbs over catalog, classes and object storage, with all that runs beside requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from blockd.catalog import Catalog
from blockd.config import Config
from blockd.daemon.guests import Guests, no_guests
from blockd.domain.effects import SideEffects
from blockd.host.mounts import mounts_changed
from blockd.host.secrets import object_storage_keys
from blockd.host.uptime import boot_id, uptime_s
from blockd.service import Service
from blockd.service.answers import Answers
from blockd.service.backups import Backups
from blockd.service.catalog_copies import CopyState
from blockd.service.classes import StorageClasses
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
from blockd.service.ports import Images
from blockd.service.restoring import settle_restored
from blockd.service.shown_snapshots import ShownSnapshots
from blockd.service.snapshots import Snapshots
from blockd.service.steady_clock import SteadyClock
from blockd.service.transfers import Transfers
from blockd.service.trash import Trash
from blockd.service.upkeep import Upkeep
from blockd.service.use_watch import UseWatch
from blockd.service.volumes import Volumes
from blockd.transfer.no_images import NoImages


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


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told of what happens by itself.

    Attributes:
        loss: is told the class of each snapshot that is lost.
        extension: is told the class and the outcome of each extension of its pool.
        recovered: is called when some trouble has ended.
    """

    loss: Callable[[str], None] = lambda _: None
    extension: Callable[[str, str], None] = lambda _class, _outcome: None
    recovered: Callable[[], None] = lambda: None


@asynccontextmanager
async def _use_told(catalog: Catalog, classes: StorageClasses) -> AsyncIterator[None]:
    """Mounts are followed for the length of the block."""
    watch = UseWatch(catalog, classes)
    with mounts_changed(watch.changed):
        watching = asyncio.create_task(watch.run(), name="use")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@asynccontextmanager
async def open_service(
    config: Config,
    catalog: Catalog,
    classes: StorageClasses,
    images: Images,
    guests: Guests | None = None,
    told: Told = Told(),
    copies: Callable[[], list[CopyState]] = list,
    effects: SideEffects | None = None,
) -> AsyncIterator[Service]:
    """The verbs over catalog and classes; what an earlier daemon left unfinished goes on.

    Args:
        guests: libvirt, and who thaws its guests; None: there is none.
        copies: how the copies of the catalog are.
        effects: is told what is done to files of backups.
    """
    host = config.host
    tenancy = Tenancy(
        host.zone,
        host.organization_id,
        host.default_project_id,
        frozenset({host.default_project_id, *(project.id for project in host.projects)}),
    )
    restored = await settle_restored(catalog, classes, host.default_project_id)
    upkeep = Upkeep(catalog, classes)
    await upkeep.start()
    stop_s = config.daemon.stop_timeout
    guests = guests or no_guests()
    shown = ShownSnapshots(catalog, classes)
    freezes, watch, attachments = guests.verbs(config, catalog, classes, shown)
    await freezes.start()  # before anything waits for a guest
    async with Operations(catalog, classes, freezes, stop_s=stop_s) as operations:
        await operations.recover()
        clock = SteadyClock(boot_id(), uptime_s)
        await clock.start(catalog)
        guard = PoolGuard(classes, told.extension)
        trash = Trash(
            catalog,
            classes,
            operations,
            clock,
            guard,
            keep_s=config.trash.keep,
            gives_room=config.trash.policy != "refuse",
        )
        steps = JobSteps(catalog, classes, images, operations)
        concurrency, keep_jobs_s = config.transfers.concurrency, config.transfers.keep_jobs
        backups = Backups(
            config.backup_folder, config.backups.keep, classes, effects or SideEffects(), uptime_s
        )
        await backups.start()
        tasks = [
            asyncio.create_task(trash.run(), name="trash"),
            asyncio.create_task(guard.run(trash.give_way), name="pool-guard"),
            asyncio.create_task(backups.run(), name="backups"),
        ]
        try:
            async with (
                _use_told(catalog, classes),
                Jobs(catalog, steps, concurrency=concurrency, keep_s=keep_jobs_s) as jobs,
            ):
                await jobs.recover()
                upkeep.recovered += [operations.try_again, jobs.try_again, told.recovered]
                losses = Losses(catalog, classes, operations, jobs, told.loss)
                tasks.append(asyncio.create_task(losses.run(), name="losses"))
                tasks.append(asyncio.create_task(upkeep.run(), name="upkeep"))
                await watch.start()
                await attachments.start()
                tasks.append(asyncio.create_task(watch.run(), name="guests"))
                tasks.append(asyncio.create_task(shown.run(), name="shown-snapshots"))
                doctor = Doctor(
                    catalog,
                    classes,
                    images,
                    operations,
                    jobs,
                    backups,
                    tenancy.default_project_id,
                )
                if config.daemon.examine_at_start:
                    tasks.append(asyncio.create_task(doctor.run(), name="doctor"))
                parts = catalog, classes, operations, trash, tenancy
                snapshots = Snapshots(*parts, freezes)
                yield Service(
                    volumes=Volumes(*parts, jobs),
                    snapshots=snapshots,
                    groups=Groups(*parts, freezes, snapshots),
                    host=Host(
                        tenancy,
                        catalog,
                        classes,
                        operations,
                        jobs,
                        guard,
                        upkeep,
                        doctor,
                        Beside(
                            copies,
                            restored,
                            backups.problems,
                            lambda: [*guests.hypervisors.problems(), *freezes.problems],
                        ),
                    ),
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
                    events=Events(catalog, classes),
                    doctor=doctor,
                    backups=backups,
                    pool_repair=PoolRepair(classes, guard, backups),
                    attachments=attachments,
                )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await attachments.stop()
            await freezes.stop()
