"""The verbs on groups: snapshots of several volumes at one instant, all of them or none."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import GroupFailed, NotFound
from blockd.domain.group import Group, NewGroup
from blockd.domain.intent import Intent, Verb, new_id
from blockd.domain.snapshot import NewSnapshot, Quiesce
from blockd.domain.states import CREATING, ERROR
from blockd.domain.volume import Volume
from blockd.service.answers import Remember, forget_answer, remember_answer, replace_answer
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.freezes import Freezes
from blockd.service.host import Tenancy
from blockd.service.operations import Operations
from blockd.service.rows import volume_at_rest
from blockd.service.snapshots import Snapshots, snapshot_of
from blockd.service.trash import Trash


@dataclass(frozen=True, slots=True)
class _Begun:
    """What the transaction that begins a group made."""

    group: Group
    intent: Intent
    erasures: list[Intent | None]


class Groups:
    """Groups of snapshots. What is in one is a snapshot like any other, and goes its own ways."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        trash: Trash,
        tenancy: Tenancy,
        freezes: Freezes,
        snapshots: Snapshots,
    ) -> None:
        self._catalog, self._classes = catalog, classes
        self._operations, self._trash, self._tenancy = operations, trash, tenancy
        self._freezes, self._snapshots = freezes, snapshots

    async def create(self, new: NewGroup, remember: Remember[Group] | None = None) -> Group:
        """Take snapshots of several volumes at one instant, and wait until they are taken.

        Not for ever: what is not taken within the classes' patience goes on, and is answered as
        it is then, `creating`, and without `suspended_ms`.

        Raises:
            NotFound, TransientState: one of the volumes is gone, or not ready; or all
                snapshots were deleted before they could be told of.
            PermissionDenied: no such project.
            PreconditionFailed: one of the volumes is in error.
            GuestRefused, HypervisorUnreachable: `require`, and a guest cannot be frozen.
            NoRoom: there is too little for all of them.
            GroupFailed: storage refused, or it took too long: there is none of them.
        """
        project_id = self._tenancy.project(new.project_id, "snapshot")
        by_class = await self._check(new)
        if new.quiesce is Quiesce.REQUIRE:
            await self._freezes.check(new.volume_ids)
        group_id = new_id()

        def begin(tx: Transaction) -> _Begun:
            return self._begin(tx, new, project_id, group_id, remember)

        needed = [
            (each, sum(each.driver.snapshot_bytes(volume.size_bytes) for volume in volumes))
            for each, volumes in by_class
        ]
        if len(needed) > 1:
            for storage_class, needs_bytes in needed:
                await self._trash.check_room(storage_class, "snapshot", needs_bytes)
        async with AsyncExitStack() as stack:
            for storage_class, needs_bytes in needed:
                await stack.enter_async_context(
                    self._trash.room(storage_class, "snapshot", group_id, needs_bytes)
                )
            begun = await self._catalog.write("group creating", begin)
        for erasure in begun.erasures:
            self._trash.way_made(erasure)
        taking = self._operations.submit(begun.intent)
        patience_s = max(storage_class.patience_s for storage_class, _ in by_class)
        await asyncio.wait([taking], timeout=patience_s)
        return await self._outcome(begun.group, remember)

    async def get(self, group_id: str) -> Group:
        """What there is of a group; those of its snapshots that are deleted are not shown.

        Raises:
            NotFound: there is none, or nothing of it.
        """
        group = await self._catalog.read(lambda tx: self._group(tx, group_id))
        if not group.snapshots:
            raise NotFound("group", group_id)
        return group

    async def _check(self, new: NewGroup) -> list[tuple[StorageClass, list[Volume]]]:
        """The volumes by class, in the order of the classes' names; all of them are at rest."""
        volumes = await self._catalog.read(
            lambda tx: [volume_at_rest(tx, volume_id) for volume_id in new.volume_ids]
        )
        by_class: defaultdict[str, list[Volume]] = defaultdict(list)
        for volume in volumes:
            self._classes.check_there(volume)
            await self._trash.check_way(self._classes[volume.storage_class], volume)
            by_class[volume.storage_class].append(volume)
        return [(self._classes[name], by_class[name]) for name in sorted(by_class)]

    def _begin(
        self,
        tx: Transaction,
        new: NewGroup,
        project_id: str,
        group_id: str,
        remember: Remember[Group] | None,
    ) -> _Begun:
        base = new.name if new.name is not None else f"grp-{group_id[:8]}"
        rows, from_disks, erasures = [], {}, []
        for number, volume_id in enumerate(new.volume_ids, 1):
            volume = volume_at_rest(tx, volume_id)
            storage_class = self._classes[volume.storage_class]
            erasures.append(self._trash.make_way(tx, storage_class, volume))
            asked = NewSnapshot(volume_id, f"{base}-{number}", project_id, (), public=False)
            row = snapshot_of(volume, asked, new_id(), project_id, is_thick=storage_class.is_thick)
            tx.add_snapshot(row)
            rows.append(replace(row, group_id=group_id))
            from_disks[row.id] = volume.disk
        tx.groups.add(group_id, [row.id for row in rows])
        classes = sorted({row.storage_class for row in rows})
        args: dict[str, object] = {
            "classes": classes,
            "from_disks": from_disks,
            "quiesce": str(new.quiesce),
        }
        intent = tx.add_intent(Verb.CREATE_GROUP, group_id, classes[0], "", args)
        group = Group(group_id, tuple(self._snapshots.seen(row) for row in rows), None)
        remember_answer(tx, group, remember)
        return _Begun(group, intent, erasures)

    async def _outcome(self, begun: Group, remember: Remember[Group] | None) -> Group:
        """What became of it; one that failed leaves nothing but its reason, which is raised.

        Its rows keep the reason for whoever is not there any more to be told.
        """
        group = await self._catalog.read(lambda tx: self._group(tx, begun.id))
        failed = [row for row in group.snapshots if row.status is ERROR]
        if not group.snapshots or (group.suspended_ms is None and failed):

            def forget(tx: Transaction) -> None:
                for row in self._group(tx, begun.id).snapshots:
                    if row.status is ERROR:
                        tx.remove_snapshot(row.id)
                forget_answer(tx, begun, remember)

            await self._catalog.write("group forgotten", forget)
            if not failed:  # somebody was quick to delete them
                raise NotFound("group", begun.id)
            raise GroupFailed(f"no snapshot was taken: {failed[0].error}")
        if any(row.status is CREATING for row in group.snapshots):
            return begun
        if remember is not None:
            await self._catalog.write(
                "group answered", lambda tx: replace_answer(tx, group, remember)
            )
        return group

    def _group(self, tx: Transaction, group_id: str) -> Group:
        rows = [tx.snapshot(snapshot_id) for snapshot_id in tx.groups.members(group_id)]
        there = [row for row in rows if row is not None and row.deleted_at is None]
        suspended_ms = next((row.suspended_ms for row in there), None)
        return Group(group_id, tuple(self._snapshots.seen(row) for row in there), suspended_ms)
