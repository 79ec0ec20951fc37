"""Brings a restored catalog into agreement with the disks, before anything of its journal is done.

A catalog from a copy is older than the disks, by a second or so as a rule. What it was about to do
may be done, and used by somebody since: so nothing that is there is made anew, and nothing is
erased. What users could see before the catalog was lost is in the copy or on the disks, as
`Catalog.copied` sees to it (docs/decisions/0014-catalog-copies.md, the table of verbs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from uuid import UUID

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.catalog.restoring import UNSETTLED
from blockd.domain.front import FrontSpec
from blockd.domain.intent import Intent, Verb, disk_name, new_id
from blockd.domain.inventory import FoundDisk, Inventory
from blockd.domain.job import Job, JobKind, JobState, Phase
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import AVAILABLE, CREATING, DELETED, Event, move
from blockd.domain.transfer import Progress
from blockd.domain.units import now_timestamp
from blockd.domain.volume import DEFAULT_PERF_IOPS, Volume
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.group_steps import unfinished_members
from blockd.service.job_ends import end_job
from blockd.service.jobs import volume_job
from blockd.service.steps import SETTLE, SWAP, exchange
from blockd.service.thick_steps import keep_id_of
from blockd.service.transfer_steps import settle_snapshot

log = structlog.get_logger()

_WHY = "the catalog was lost and restored from its copy"


async def settle_restored(catalog: Catalog, classes: StorageClasses, project_id: str) -> list[str]:
    """At start, before fronts and journal: no-op unless the catalog was restored.

    Args:
        project_id: of volumes and snapshots of which nothing but their disk is known.

    Returns:
        What there is to know about it, a line each.

    Raises:
        StorageError: what there is cannot be seen.
    """
    told = await catalog.read(lambda tx: tx.meta(UNSETTLED))
    if told is None:
        return []
    found = [(one, await one.driver.inventory()) for one in classes]

    def settle(tx: Transaction) -> list[str]:
        lines = [told]
        _settle_groups(tx, {disk for _, inventory in found for disk in inventory.disks})
        for storage_class, inventory in found:
            lines += _Settling(tx, storage_class, inventory, project_id).settle()
        tx.drop_meta(UNSETTLED)
        return lines

    lines = await catalog.write("restored catalog settled", settle)
    for line in lines:
        log.warning("catalog restored", told=line)
    return lines


def _settle_groups(tx: Transaction, disks: set[str]) -> None:
    """Those of which all is there, or nothing, are as they were: taken, or still to be taken.

    Of another one somebody may have used a part, which is not made anew: what is there is kept,
    and the others say that they were lost.
    """
    for intent in tx.intents():
        rows = unfinished_members(tx, intent) if intent.verb is Verb.CREATE_GROUP else []
        if not any(row.disk in disks for row in rows):
            continue
        for row in rows:
            is_there = row.disk in disks
            event = Event.CREATED if is_there else Event.FAILED
            status = move("snapshot", row.id, row.status, event)
            error = None if is_there else f"{_WHY}, and its LV is not there"
            tx.put_snapshot(replace(row, status=status, error=error, updated_at=now_timestamp()))
        tx.remove_intent(intent)


class _Settling:
    """One class's rows, intents and jobs, within the transaction that settles all."""

    def __init__(
        self, tx: Transaction, storage_class: StorageClass, inventory: Inventory, project_id: str
    ) -> None:
        self._tx, self._class, self._project_id = tx, storage_class, project_id
        self._inventory, self._fronts = inventory, inventory.fronts
        self._disks: Mapping[str, FoundDisk] = {
            name: disk for name, disk in inventory.disks.items() if not disk.is_merging
        }
        self._now = now_timestamp()

    def settle(self) -> list[str]:
        """Lines for people; nothing of the class is worse off than before."""
        for intent in self._tx.intents():
            if intent.storage_class == self._class.name:
                self._settle_intent(intent)
        for job in self._tx.jobs.unfinished():
            if self._is_ours(job):
                self._settle_job(job)
        gone = [*self._settle_volumes(), *self._settle_snapshots()]
        found = [*self._adopt()]
        return [
            *_lines(self._class.name, "of which the LV is gone, now in error", gone),
            *_lines(self._class.name, "of which only the LV is known", found),
        ]

    # the journal

    def _settle_intent(self, intent: Intent) -> None:
        match intent.verb:
            case Verb.CREATE_VOLUME:
                row = self._tx.volume(intent.resource_id)
                disk = None if row is None else self._disks.get(row.disk)
                # Smaller is a clone that was still to be extended, and never was to be seen.
                if row is not None and disk is not None and disk.size_bytes >= row.size_bytes:
                    self._end_change(intent, row, Event.CREATED)
            case Verb.CREATE_SNAPSHOT:
                # Whatever instant it shows: it is after the request, and before `available`.
                taken = self._tx.snapshot(intent.resource_id)
                if taken is not None and taken.disk in self._disks:
                    self._put_snapshot(taken, Event.CREATED)
                    self._tx.remove_intent(intent)
            case Verb.CHANGE_VOLUME:
                self._settle_change(intent)
            case Verb.REVERT_VOLUME:
                self._settle_revert(intent)
            case Verb.CREATE_GROUP:
                pass  # seen already: it may be about more than this class
            case Verb.ERASE:
                pass  # its rows went with the commit that wrote it: nobody has made them anew

    def _settle_change(self, intent: Intent) -> None:
        """Ended if the disk shows that it was done; its volume may have grown further since."""
        row, size_bytes = self._tx.volume(intent.resource_id), intent.args["size_bytes"]
        if row is None:
            return
        target_bytes = size_bytes if isinstance(size_bytes, int) else row.size_bytes
        seen_bytes = self._seen_bytes(row, target_bytes)
        disk, whole_extents = self._disks.get(row.disk), self._inventory.whole_extents
        least_bytes = max(whole_extents(target_bytes), whole_extents(row.size_bytes) + 1)
        if disk is not None and disk.size_bytes >= least_bytes:
            seen_bytes = max(seen_bytes, target_bytes)
        if seen_bytes > row.size_bytes and seen_bytes >= target_bytes:
            perf_iops = intent.args["perf_iops"]
            if isinstance(perf_iops, int):
                row = replace(row, perf_iops=perf_iops)
            self._end_change(intent, replace(row, size_bytes=seen_bytes), Event.CHANGED)

    def _settle_revert(self, intent: Intent) -> None:
        row, keep_id = self._tx.volume(intent.resource_id), intent.args["keep_id"]
        new_disk, old_disk = intent.text("new_disk"), self._disks.get(intent.text("old_disk"))
        if row is None:
            return
        front = self._fronts.get(row.id)
        has_swapped = new_disk in self._disks and (
            (front is not None and front.disk == new_disk)
            or old_disk is None
            or not old_disk.is_writable
        )
        if intent.phase != SETTLE and has_swapped:
            self._tx.put_phase(intent, SETTLE)
            exchange(self._tx, intent, row.id, new_disk)
            intent, row = replace(intent, phase=SETTLE), self._tx.volume(row.id) or row
        if intent.phase == SETTLE:
            if isinstance(keep_id, str) and old_disk is None:  # kept, and erased since
                self._tx.remove_snapshot(keep_id)
                self._end_change(intent, row, Event.CHANGED)
        elif intent.phase == SWAP:
            # Given up or not begun, nobody knows; and both disks may have been written to.
            row = replace(row, error=f"not reverted: {_WHY}")
            self._end_change(intent, row, Event.FAILED)

    def _end_change(self, intent: Intent, row: Volume, event: Event) -> None:
        status = move("volume", row.id, row.status, event)
        self._tx.put_volume(replace(row, status=status, updated_at=self._now))
        self._tx.remove_intent(intent)

    def _put_snapshot(self, row: Snapshot, event: Event, error: str | None = None) -> None:
        status = move("snapshot", row.id, row.status, event)
        self._tx.put_snapshot(replace(row, status=status, error=error, updated_at=self._now))

    # jobs

    def _is_ours(self, job: Job) -> bool:
        volume = self._tx.volume(job.volume_id or "")
        row = self._tx.snapshot(job.snapshot_id or "") if volume is None else volume
        return row is not None and row.storage_class == self._class.name

    def _settle_job(self, job: Job) -> None:
        if job.has_ended:
            return  # an upload to be aborted: that can be done twice
        volume, front = self._tx.volume(job.volume_id or ""), self._fronts.get(job.volume_id or "")
        match job.kind:
            case JobKind.EXPORT:
                # The key may be another export's by now.
                phase = Phase.ENDED if job.phase is Phase.BEGUN else Phase.UNDOING
                error = f"{_WHY}: export again"
                end_job(self._tx, job.id, JobState.FAILED, Progress(), error=error, phase=phase)
                settle_snapshot(self._tx, job, error)
            case JobKind.IMPORT:
                row = self._tx.snapshot(job.snapshot_id or "")
                disk = None if row is None else self._disks.get(row.disk)
                # Sealed is whole: that is its last step.
                if row is not None and disk is not None and not disk.is_writable:
                    if row.status is CREATING:
                        self._put_snapshot(row, Event.CREATED)
                    end_job(self._tx, job.id, JobState.SUCCEEDED, Progress())
            case JobKind.CREATE | JobKind.CLONE if (
                volume is not None and volume.disk in self._disks
            ):
                if job.phase is Phase.SHOWING or front is not None:
                    status = move("volume", volume.id, volume.status, Event.CREATED)
                    self._tx.put_volume(replace(volume, status=status, updated_at=self._now))
                    end_job(self._tx, job.id, JobState.SUCCEEDED, Progress())
            case JobKind.GROW if volume is not None:
                size_bytes = int(str(job.args["size_bytes"]))
                if front is not None and front.size_bytes >= size_bytes:
                    job = replace(job, phase=Phase.SHOWING)
                    self._tx.jobs.put(job)
                if job.phase is Phase.SHOWING:  # so that no shorter front comes up first
                    self._tx.put_volume(replace(volume, size_bytes=size_bytes))
            case _:
                pass  # the copy knows of each step that cannot be done twice

    # rows

    def _settle_volumes(self) -> Iterator[str]:
        for row in self._tx.volumes_of(self._class.name):
            if row.disk in self._disks:
                seen_bytes = self._seen_bytes(row, row.size_bytes)
                if row.status is AVAILABLE and seen_bytes > row.size_bytes:
                    self._tx.put_volume(replace(row, size_bytes=seen_bytes))
            elif row.status is DELETED:
                self._tx.remove_volume(row.id)  # it has been erased since
            elif row.status is AVAILABLE:
                status = move("volume", row.id, row.status, Event.LOST)
                error = f"its LV {row.disk} is gone: erased after the last copy of the catalog?"
                self._tx.put_volume(replace(row, status=status, error=error, updated_at=self._now))
                yield row.name

    def _seen_bytes(self, row: Volume, expected_bytes: int) -> int:
        """How large the volume is, as far as its front or its disk shows it to be larger."""
        front, disk = self._fronts.get(row.id), self._disks.get(row.disk)
        if front is not None and front.disk == row.disk:
            return max(row.size_bytes, front.size_bytes)
        if disk is None or self._class.is_thick:
            # A thick disk may be larger since a grow was given up: old bytes are behind its end.
            return row.size_bytes
        most_bytes = self._inventory.whole_extents(max(row.size_bytes, expected_bytes))
        return disk.size_bytes if disk.size_bytes > most_bytes else row.size_bytes

    def _settle_snapshots(self) -> Iterator[str]:
        merging = {
            job.snapshot_id for job in self._tx.jobs.unfinished() if job.kind is JobKind.REVERT
        }
        for row in self._tx.snapshots_of(self._class.name):
            if row.disk in self._disks or row.id in merging:
                continue
            if row.status is DELETED:
                self._tx.remove_snapshot(row.id)
            elif row.status is AVAILABLE:
                error = f"its LV {row.disk} is gone: erased after the last copy of the catalog?"
                self._put_snapshot(row, Event.LOST, error)
                yield row.name

    # disks without a row

    def _adopt(self) -> Iterator[str]:
        """Rows for disks that nothing names: made in the last second, or all is lost but them."""
        named = self._named()
        left = [disk for disk in self._inventory.disks.values() if disk.name not in named]
        volume_ids = {front.disk: id_ for id_, front in self._fronts.items()}
        for disk in left:
            if disk.is_writable and not disk.is_merging:
                yield self._adopt_volume(disk, self._fronts.get(volume_ids.get(disk.name, "")))
        for disk in left:
            if not disk.is_writable or disk.is_merging:
                yield self._adopt_snapshot(disk, self._fronts.get(volume_ids.get(disk.name, "")))
        self._go_on_merging()

    def _named(self) -> set[str]:
        named = self._tx.disks.named()
        for intent in self._tx.intents():
            named |= {*intent.texts("disks")} if "disks" in intent.args else set()
            named |= {str(intent.args.get(key)) for key in ("new_disk", "old_disk", "from_disk")}
        for job in self._tx.jobs.unfinished():
            if (keep_id := keep_id_of(job)) is not None:
                named.add(disk_name(keep_id))
        return named

    def _adopt_volume(self, disk: FoundDisk, front: FrontSpec | None) -> str:
        id_ = self._id_for(disk, front)
        source = self._tx.disks.snapshot_on(disk.origin or "")
        volume = Volume(
            id=id_,
            project_id=self._project_id,
            name=f"recovered-{id_[:8]}",
            size_bytes=disk.size_bytes if front is None else front.size_bytes,
            perf_iops=None if self._class.is_thick else DEFAULT_PERF_IOPS,
            storage_class=self._class.name,
            status=move("volume", id_, CREATING, Event.CREATED),
            tags=(),
            parent_snapshot_id=source,
            disk=disk.name,
            created_at=self._now,
            updated_at=self._now,
        )
        self._tx.add_volume(volume)
        return volume.name

    def _adopt_snapshot(self, disk: FoundDisk, front: FrontSpec | None) -> str:
        id_ = self._id_for(disk, front)
        volumes = self._tx.volumes_of(self._class.name)
        parent = next((row for row in volumes if row.disk == disk.origin), None)
        size_bytes = disk.size_bytes
        if parent and self._inventory.whole_extents(parent.size_bytes) == size_bytes:
            size_bytes = parent.size_bytes
        if front is not None:
            size_bytes = front.size_bytes
        snapshot = Snapshot(
            id=id_,
            project_id=self._project_id,
            name=f"recovered-{id_[:8]}",
            size_bytes=size_bytes,
            storage_class=self._class.name,
            status=move("snapshot", id_, CREATING, Event.CREATED),
            public=False,
            tags=(),
            volume_id=None if parent is None else parent.id,
            parent=None,
            disk=disk.name,
            created_at=self._now,
            updated_at=self._now,
            origin_disk=disk.origin if self._class.is_thick else None,
        )
        self._tx.add_snapshot(snapshot)
        return snapshot.name

    def _id_for(self, disk: FoundDisk, front: FrontSpec | None) -> str:
        """Its own if its front is up, else the one in the disk's name."""
        asked = front.volume_id if front is not None else disk.name.removeprefix("blockd-")
        taken = self._tx.volume(asked) or self._tx.snapshot(asked)
        return asked if taken is None and _is_id(asked) else new_id()

    def _go_on_merging(self) -> None:
        """LVM shows a merge that no job knows: it only goes forward."""
        known = {job.volume_id for job in self._tx.jobs.unfinished() if job.kind is JobKind.REVERT}
        for disk in self._inventory.disks.values():
            volumes = self._tx.volumes_of(self._class.name) if disk.is_merging else []
            for volume in volumes:
                if volume.disk != disk.origin or volume.id in known:
                    continue
                status = move("volume", volume.id, volume.status, Event.CHANGE)
                self._tx.put_volume(replace(volume, status=status, updated_at=self._now))
                snapshot_id = self._tx.disks.snapshot_on(disk.name)
                job = volume_job(new_id(), JobKind.REVERT, volume, snapshot_id, {})
                self._tx.jobs.add(replace(job, phase=Phase.MERGING))


def _lines(class_name: str, what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"class {class_name}: {what}: {', '.join(names[:5])}{more}"]


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
