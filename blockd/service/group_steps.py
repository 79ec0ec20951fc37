"""How snapshots of several volumes are taken at one instant: all of them, or none.

One intent for all: an attempt that was cut short, by a crash at any point, is undone as a whole and
begun again as a whole, as no snapshot taken later would be of its instant
(docs/decisions/0023-group-snapshots.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import StorageError, StorageOverdue
from blockd.domain.group import Picture
from blockd.domain.intent import Intent
from blockd.domain.snapshot import Quiesce, Snapshot
from blockd.domain.states import CREATING, Event, move
from blockd.domain.units import now_timestamp
from blockd.service.classes import StorageClasses
from blockd.service.erasures import add_erase, release
from blockd.service.freezes import Freezes
from blockd.service.quiet import Quiet

#: Each costs the volumes a suspension.
_MOST_ATTEMPTS = 4

#: Pictures by the name of their class.
ByClass = Mapping[str, Sequence[Picture]]


@dataclass(frozen=True, slots=True)
class _Taken:
    """How it went: for how long the volumes stood still, and how quiet their guests were."""

    suspended_ms: int
    quiet: Quiet


@dataclass(frozen=True, slots=True)
class _Member:
    """A snapshot to be taken, and the disk that its volume has now."""

    row: Snapshot
    of_disk: str


class GroupSteps:
    """The verb `create_group`, within the turns of all classes that it concerns."""

    def __init__(self, catalog: Catalog, classes: StorageClasses, freezes: Freezes) -> None:
        self._catalog, self._classes, self._freezes = catalog, classes, freezes

    async def create(self, intent: Intent) -> None:
        """Take all snapshots under one suspension, and take the intent off the journal.

        Raises:
            StorageError: storage refused; `give_up` decides what follows.
        """
        members = await self._catalog.read(lambda tx: _members(tx, intent))
        taken = await self._take(intent, members) if members else None
        self._forget_promise(intent)

        def created(tx: Transaction) -> None:
            if taken is not None:
                _settle(tx, intent, members, taken)
            tx.remove_intent(intent)

        await self._catalog.write("group created", created)

    def _forget_promise(self, intent: Intent) -> None:
        """Not before it is taken or given up: an attempt that will be tried again needs it."""
        for name in intent.classes:
            self._classes[name].promised.pop(intent.resource_id, None)

    async def _take(self, intent: Intent, members: Sequence[_Member]) -> _Taken:
        """What an earlier attempt left makes the first one fail; then once more, from nothing.

        And again for what is remedied: what a power cut left of a thin snapshot is in the way of
        the next attempt as an LV, and of the one after it as a device of the pool.
        """
        by_class = _by_class(intent, members)
        quiesce, has_removed = Quiesce(intent.text("quiesce")), False
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            begun: list[str] = []
            try:
                return await self._take_once(by_class, quiesce, begun)
            except StorageOverdue:
                raise
            except StorageError as err:
                removed = [
                    await self._classes[name].driver.undo(pictures)
                    for name, pictures in by_class.items()
                ]
                is_remedied = bool(begun) and await self._classes[begun[-1]].driver.remedy(err)
                is_hopeful = is_remedied or (any(removed) and not has_removed)
                if not is_hopeful or attempt == _MOST_ATTEMPTS:
                    raise
                has_removed |= any(removed)
        raise AssertionError("unreachable")

    async def _take_once(self, by_class: ByClass, quiesce: Quiesce, begun: list[str]) -> _Taken:
        """Nothing here may wait for a file to be written, from the first `still` on.

        Args:
            begun: is told each class whose snapshots are begun.
        """
        volume_ids = [picture.volume_id for some in by_class.values() for picture in some]
        async with AsyncExitStack() as ready:
            takes = {}
            for name, pictures in by_class.items():
                taking = self._classes[name].driver.taking(pictures)
                takes[name] = await ready.enter_async_context(taking)
            async with self._freezes.quiet(volume_ids, quiesce) as quiet:
                began = time.monotonic()
                async with AsyncExitStack() as fronts:
                    for name, pictures in by_class.items():
                        ids = [picture.volume_id for picture in pictures]
                        await fronts.enter_async_context(self._classes[name].driver.still(ids))
                    for name, take in takes.items():
                        begun.append(name)
                        await take()
                suspended_ms = round((time.monotonic() - began) * 1000)
        return _Taken(suspended_ms, quiet)

    async def give_up(self, intent: Intent, reason: str) -> list[Intent]:
        """None is taken: all rows say why, and whatever was made is erased, class by class."""

        def failed(tx: Transaction) -> list[Intent]:
            tx.remove_intent(intent)
            rows, now = unfinished_members(tx, intent), now_timestamp()
            for row in rows:
                status = move("snapshot", row.id, row.status, Event.FAILED)
                tx.put_snapshot(replace(row, status=status, error=reason, updated_at=now))
            erasures = []
            for name in intent.classes:
                of_class = [row for row in rows if row.storage_class == name]
                if of_class:
                    disks = [*(row.disk for row in of_class), *release(tx, of_class)]
                    erasures.append(add_erase(tx, name, disks, []))
            return erasures

        erasures = await self._catalog.write("group failed", failed)
        self._forget_promise(intent)
        return erasures


def _settle(tx: Transaction, intent: Intent, members: Sequence[_Member], taken: _Taken) -> None:
    """All of them are available in the same moment."""
    now, quiet = now_timestamp(), taken.quiet
    size_bytes = {member.row.id: member.row.size_bytes for member in members}
    for row in unfinished_members(tx, intent):
        status = move("snapshot", row.id, row.status, Event.CREATED)
        consistency, frozen_ms = quiet.of(row.volume_id)
        made = replace(row, consistency=consistency, frozen_ms=frozen_ms)
        made = replace(made, size_bytes=size_bytes[row.id])
        tx.put_snapshot(replace(made, status=status, updated_at=now))
    tx.groups.taken(intent.resource_id, taken.suspended_ms)


def _members(tx: Transaction, intent: Intent) -> list[_Member]:
    """Those that are to be taken, with disks and sizes as they are in the turns.

    Not as they were when it was asked for: while it waited for its turns, a volume may have been
    reverted or grown, and the others written to since. One that is erased is as it was.
    """
    from_disks = intent.args["from_disks"]
    if not isinstance(from_disks, dict):
        raise TypeError(f"intent {intent.id} of a group names no disks")
    members = []
    for row in unfinished_members(tx, intent):
        volume = None if row.volume_id is None else tx.volume(row.volume_id)
        if volume is None:
            members.append(_Member(row, str(from_disks[row.id])))
        else:
            members.append(_Member(replace(row, size_bytes=volume.size_bytes), volume.disk))
    return members


def unfinished_members(tx: Transaction, intent: Intent) -> list[Snapshot]:
    """The rows of a group that is to be taken; none, if that is settled already."""
    rows = [tx.snapshot(snapshot_id) for snapshot_id in tx.groups.members(intent.resource_id)]
    return [row for row in rows if row is not None and row.status is CREATING]


def _by_class(intent: Intent, members: Sequence[_Member]) -> ByClass:
    """In the order of the classes' names, in which their fronts are suspended, too."""
    by_class: dict[str, list[Picture]] = {name: [] for name in intent.classes}
    for member in members:
        picture = Picture(member.row.disk, member.of_disk, member.row.volume_id or "")
        by_class[member.row.storage_class].append(picture)
    return by_class
