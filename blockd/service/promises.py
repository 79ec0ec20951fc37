"""What requests were promised of a thick class's space, known again after a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import StorageError
from blockd.domain.intent import Verb, disk_name
from blockd.domain.job import Job, JobKind, Phase
from blockd.domain.states import CREATING
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.group_steps import unfinished_members

log = structlog.get_logger()


async def recall_promises(catalog: Catalog, classes: StorageClasses) -> None:
    """Before anything is served or gone on with: promise anew what was not taken yet.

    One process for each thick class in which something was cut short that takes room.
    """
    for storage_class in classes:
        known = partial(_promised, storage_class)
        if not storage_class.is_thick or not await catalog.read(partial(known, {})):
            continue
        try:
            disks = await storage_class.driver.disks()
        except StorageError as err:  # then they count as if nothing had been taken
            log.warning("disks not known", storage_class=storage_class.name, reason=str(err))
            disks = {}
        storage_class.promised.update(await catalog.read(partial(known, disks)))


def _promised(
    storage_class: StorageClass, disks: Mapping[str, int], tx: Transaction
) -> dict[str, int]:
    """By the id of what they are for, as the requests promised them."""
    promises = [*_to_snapshots(storage_class, disks, tx)]
    for job in tx.jobs.unfinished():
        if job.phase is Phase.BEGUN and not job.has_ended:
            promises += _to_job(storage_class, disks, tx, job)
    return {id_: size_bytes for id_, size_bytes in promises if size_bytes > 0}


def _to_snapshots(
    storage_class: StorageClass, disks: Mapping[str, int], tx: Transaction
) -> Iterator[tuple[str, int]]:
    for intent in tx.intents():
        if intent.verb is Verb.CREATE_GROUP:
            rows = [row for row in unfinished_members(tx, intent) if row.disk not in disks]
            needs = storage_class.driver.snapshot_bytes
            of_class = [row for row in rows if row.storage_class == storage_class.name]
            yield intent.resource_id, sum(needs(row.size_bytes) for row in of_class)
            continue
        row = tx.snapshot(intent.resource_id) if intent.verb is Verb.CREATE_SNAPSHOT else None
        if row is None or row.status is not CREATING or row.storage_class != storage_class.name:
            continue
        if row.disk not in disks:
            yield row.id, storage_class.driver.snapshot_bytes(row.size_bytes)


def _to_job(
    storage_class: StorageClass, disks: Mapping[str, int], tx: Transaction, job: Job
) -> Iterator[tuple[str, int]]:
    is_import = job.kind is JobKind.IMPORT
    row = tx.snapshot(job.snapshot_id or "") if is_import else tx.volume(job.volume_id or "")
    if row is None or row.storage_class != storage_class.name:
        return
    taken_bytes = disks.get(row.disk, 0)
    match job.kind:
        case JobKind.CREATE | JobKind.CLONE | JobKind.IMPORT:
            yield row.id, storage_class.driver.volume_bytes(row.size_bytes) - taken_bytes
        case JobKind.GROW:
            taken_bytes = max(taken_bytes, storage_class.driver.volume_bytes(row.size_bytes))
            size_bytes = int(str(job.args["size_bytes"]))
            yield job.id, storage_class.driver.volume_bytes(size_bytes) - taken_bytes
        case JobKind.REVERT:
            needs_bytes, keep_id = int(str(job.args.get("needs_bytes", 0))), job.args.get("keep_id")
            if keep_id is not None and disk_name(str(keep_id)) in disks:
                needs_bytes -= storage_class.driver.snapshot_bytes(row.size_bytes)
            yield job.id, needs_bytes
        case _:
            pass
