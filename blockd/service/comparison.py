"""Comparing what the catalog says of a class with what there is. Pure, but for reading the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockd.catalog import Transaction
from blockd.domain.finding import Finding, FindingKind
from blockd.domain.front import FrontSpec
from blockd.domain.guest import AttachmentStatus
from blockd.domain.intent import Verb, disk_name
from blockd.domain.inventory import FoundDisk, Inventory
from blockd.domain.job import JobKind
from blockd.domain.states import AVAILABLE, CREATING, DELETED, ERROR
from blockd.service.classes import StorageClass
from blockd.service.shown_snapshots import front_of_snapshot

_OURS = disk_name("")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the catalog says of one class.

    Attributes:
        whole: the disks that must be there, and whose they are: `volume <id>`.
        broken: the disks of what is in error, which must not be there, and whose they were.
        passing: the disks that the journal has in hand: they may be there or not.
        fronts: those that must be up, by volume, or by snapshot that guests read.
        moving: the volumes and snapshots whose front may be up or not, over whichever disk.
    """

    whole: Mapping[str, str]
    broken: Mapping[str, str]
    passing: frozenset[str]
    fronts: Mapping[str, FrontSpec]
    moving: frozenset[str]


def expectation(storage_class: StorageClass, tx: Transaction) -> Expectation:
    """As of this transaction, within the class's turn."""
    name = storage_class.name
    owners = tx.disks.owners(name)
    intents = [intent for intent in tx.intents() if intent.storage_class == name]
    jobs = tx.jobs.unfinished()
    journal = [*(intent.args for intent in intents), *(job.args for job in jobs)]
    passing = {disk for args in journal for disk in _disks_in(args)}
    passing |= {disk_name(str(job.args["keep_id"])) for job in jobs if job.args.get("keep_id")}
    # Of a snapshot that its volume is reverted to, the disk is merged, and made again.
    reverted_to = {job.snapshot_id for job in jobs if job.kind is JobKind.REVERT}
    moving = {intent.resource_id for intent in intents} | storage_class.deleting
    erasures = [intent for intent in intents if intent.verb is Verb.ERASE]
    moving |= {volume_id for intent in erasures for volume_id in intent.texts("fronts")}
    moving |= {job.volume_id or "" for job in jobs}
    whole = tx.disks.at_rest(name)
    broken: dict[str, str] = {}
    fronts: dict[str, FrontSpec] = {}
    for owner in owners:
        whose = f"{owner.resource} {owner.id}"
        if owner.status is ERROR or (owner.status is DELETED and owner.has_error):
            broken[owner.disk] = whose
        elif owner.status is CREATING or owner.id in reverted_to:
            passing.add(owner.disk)
        if owner.resource == "volume" and owner.status is AVAILABLE:
            fronts[owner.id] = FrontSpec(owner.id, owner.disk, owner.size_bytes)
        elif owner.resource == "volume" and owner.status not in (DELETED, ERROR):
            moving.add(owner.id)
    for snapshot in tx.attached_snapshots(name):
        fronts[snapshot.id] = front_of_snapshot(snapshot)
        if any(one.status is AttachmentStatus.ATTACHING for one in snapshot.attachments):
            moving.add(snapshot.id)
    return Expectation(
        whole=whole,
        broken=broken,
        passing=frozenset(passing),
        fronts={id_: front for id_, front in fronts.items() if id_ not in moving},
        moving=frozenset(moving),
    )


def compare(expected: Expectation, found: Inventory, *, is_thick: bool) -> list[Finding]:
    """What differs, for as long as it has not been in between two steps."""
    return [
        *_compare_fronts(expected, found),
        *_compare_disks(expected, found, is_thick=is_thick),
    ]


def adoptable(disk: FoundDisk, found: Inventory, *, is_thick: bool) -> bool:
    """Whether it holds bytes by itself, and nobody can be writing to it."""
    others = [other.origin for other in found.disks.values()]
    stands_alone = not is_thick or (disk.origin is None and disk.name not in others)
    return stands_alone and all(front.disk != disk.name for front in found.fronts.values())


def _compare_disks(expected: Expectation, found: Inventory, *, is_thick: bool) -> Iterator[Finding]:
    for name, whose in expected.whole.items():
        if name not in found.disks and name not in expected.passing:
            yield _missing(name, whose)
    for disk in found.disks.values():
        if disk.name in expected.whole or disk.name in expected.passing:
            continue
        if owner := expected.broken.get(disk.name):
            yield Finding(
                FindingKind.DISK_LEFT,
                disk.name,
                f"{disk.name} is left of {owner}, which is in error and has no bytes",
                fix="erase it",
            )
        else:
            yield _unknown(disk, adoptable=adoptable(disk, found, is_thick=is_thick))


def _missing(disk: str, whose: str) -> Finding:
    return Finding(
        FindingKind.DISK_MISSING,
        disk,
        f"{whose} has its bytes on {disk}, and there is no such LV that bears blockd's tag",
        advice="was it renamed, or its tag removed? undo that. Is the volume group's text an older "
        "one? restore the right one. If it is gone for good, delete what lay on it",
    )


def _unknown(disk: FoundDisk, *, adoptable: bool) -> Finding:
    explanation = (
        f"{disk.name} bears blockd's tag, and the catalog lacks it: is the catalog an older one, "
        "or was it removed by hand?"
    )
    if adoptable:
        return Finding(
            FindingKind.DISK_UNKNOWN,
            disk.name,
            explanation,
            fix=f'enter it into the catalog as snapshot "{found_name(disk.name)}", read-only',
        )
    return Finding(
        FindingKind.DISK_UNKNOWN,
        disk.name,
        explanation,
        advice="restore the catalog that knows it; nothing erases it meanwhile. Where a front is "
        "over it, close that first, and fix the front",
    )


def found_name(disk: str) -> str:
    """What a disk is called that is entered into the catalog."""
    return f"found-{disk.removeprefix(_OURS)[:8]}"


def _compare_fronts(expected: Expectation, found: Inventory) -> Iterator[Finding]:
    for volume_id, wanted in expected.fronts.items():
        front = found.fronts.get(volume_id)
        if front is None and wanted.disk in found.disks:
            yield Finding(
                FindingKind.FRONT_MISSING,
                volume_id,
                f"{_whose(wanted)} has no device",
                fix="set it up",
            )
        elif front is not None and front != wanted:
            yield _wrong(front, wanted)
    for volume_id in found.fronts.keys() - expected.fronts.keys() - expected.moving:
        yield Finding(
            FindingKind.FRONT_UNKNOWN,
            volume_id,
            _left(found.fronts[volume_id]),
            fix="remove the device, unless somebody holds it open",
        )


def _whose(front: FrontSpec) -> str:
    return f"{'snapshot' if front.is_read_only else 'volume'} {front.volume_id}"


def _left(front: FrontSpec) -> str:
    why = "which no guest has" if front.is_read_only else "which does not exist, or is deleted"
    return f"there is a device of {_whose(front)}, {why}"


def _wrong(front: FrontSpec, wanted: FrontSpec) -> Finding:
    volume_id = wanted.volume_id
    if front.is_read_only != wanted.is_read_only:
        can, advice = "can", "detach it from its guests, which ends the device, and attach it again"
        if front.is_read_only:
            can, advice = "cannot", f"blockdev --setrw /dev/blockd/{volume_id}"
        return Finding(
            FindingKind.FRONT_WRONG,
            volume_id,
            f"the device of {_whose(wanted)} {can} be written to",
            advice=advice,
        )
    if front.disk != wanted.disk:
        return Finding(
            FindingKind.FRONT_WRONG,
            volume_id,
            f"the device of {_whose(wanted)} shows {front.disk}, the catalog says {wanted.disk}",
            advice="what users see is what the device shows: do not restart blockd before you know "
            "which is right; a clone of either tells. Is the catalog an older one? restore the "
            "right one",
        )
    difference = f"has {front.size_bytes} bytes, the catalog says {wanted.size_bytes}"
    explanation = f"the device of {_whose(wanted)} {difference}"
    if front.size_bytes < wanted.size_bytes:
        return Finding(FindingKind.FRONT_WRONG, volume_id, explanation, fix="grow the device")
    return Finding(
        FindingKind.FRONT_WRONG,
        volume_id,
        explanation,
        advice="grow the volume to that size: a device never shrinks, as somebody may use its end",
    )


def _disks_in(value: object) -> Iterator[str]:
    """Every name of a disk in the arguments of an intent or a job."""
    if isinstance(value, str) and value.startswith(_OURS):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _disks_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _disks_in(item)
