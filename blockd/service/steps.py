"""How each verb of the journal is carried out, and what becomes of it when storage refuses.

`finish` may be called again at any time, after a crash at any point: every step either sees that
it was done, or undoes what it left and does it anew. The order of steps is such that whatever the
catalog says of a resource is true of its disk (ARCHITECTURE.md, "What survives a crash").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import InUse, StorageError, StorageOverdue
from blockd.domain.front import FrontSpec
from blockd.domain.intent import Intent, Verb
from blockd.domain.snapshot import Quiesce, Snapshot
from blockd.domain.states import CREATING, UPDATING, Event, move
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.service.classes import StorageClasses
from blockd.service.erasures import add_erase, release
from blockd.service.freezes import Freezes
from blockd.service.group_steps import GroupSteps
from blockd.service.ports import StorageDriver

log = structlog.get_logger()

# Phases of a revert: the new disk is being made; it stands and goes behind the front;
# it is behind the front, and the former disk is put away.
PREPARE, SWAP, SETTLE = "prepare", "swap", "settle"

_ERASED_AT_ONCE = 16


def front_of(volume: Volume) -> FrontSpec:
    """The front that the catalog says this volume has."""
    return FrontSpec(volume.id, volume.disk, volume.size_bytes)


class Steps:
    """The verbs. All within the turns of the intent's classes."""

    def __init__(self, catalog: Catalog, classes: StorageClasses, freezes: Freezes) -> None:
        self._catalog, self._classes, self._freezes = catalog, classes, freezes
        self._groups = GroupSteps(catalog, classes, freezes)

    async def finish(self, intent_id: int) -> None:
        """Carry the intent out to its end and take it off the journal.

        Raises:
            StorageError: storage refused; `give_up` decides what follows.
        """
        # Read, not remembered: an erasure may have been carried out along with another, and a
        # verb that is tried again has advanced.
        intent, volume, snapshot = await self._catalog.read(lambda tx: _rows(tx, intent_id))
        if intent is None:
            return
        driver = self._classes[intent.storage_class].driver
        match intent.verb:
            case Verb.CREATE_VOLUME if volume is not None and volume.status is CREATING:
                await self._create_volume(intent, volume, driver)
            case Verb.CHANGE_VOLUME if volume is not None and volume.status is UPDATING:
                await self._change_volume(intent, volume, driver)
            case Verb.REVERT_VOLUME if volume is not None and volume.status is UPDATING:
                await self._revert_volume(intent, volume, driver)
            case Verb.CREATE_SNAPSHOT if snapshot is not None and snapshot.status is CREATING:
                await self._create_snapshot(intent, snapshot, driver)
            case Verb.CREATE_GROUP:
                await self._groups.create(intent)
            case Verb.ERASE:
                await self._erase(intent, driver)
            case _:  # it is settled already
                await self._catalog.write("intent done", lambda tx: tx.remove_intent(intent))

    async def give_up(self, intent_id: int, error: StorageError) -> list[Intent]:
        """Settle the resource after `error`, and answer what must be done to leave nothing over.

        Raises:
            StorageError: there is nothing to give up; try again later.
        """
        # Read again: the verb may have advanced before it failed, and past its point of no
        # return the disk that was new is the volume's own.
        intent = await self._catalog.read(lambda tx: tx.intent(intent_id))
        if intent is None:
            return []
        match intent.verb:
            case Verb.CREATE_VOLUME | Verb.CREATE_SNAPSHOT:
                resource = "volume" if intent.verb is Verb.CREATE_VOLUME else "snapshot"
                return await self._give_up_create(intent, resource, str(error))
            case Verb.CREATE_GROUP:
                return await self._groups.give_up(intent, str(error))
            case Verb.CHANGE_VOLUME:
                return await self._give_up_change(intent, str(error), leftover=None)
            case Verb.REVERT_VOLUME if not await self._has_swapped(intent):
                return await self._give_up_change(intent, str(error), intent.text("new_disk"))
            case _:
                raise error

    async def _has_swapped(self, intent: Intent) -> bool:
        driver = self._classes[intent.storage_class].driver
        return intent.phase == SETTLE or (
            await driver.disk_behind(intent.resource_id) == intent.text("new_disk")
        )

    # create

    async def _create_volume(self, intent: Intent, volume: Volume, driver: StorageDriver) -> None:
        if await driver.disk_behind(volume.id) is not None:
            await driver.disconnect(volume.id)  # made by an attempt whose last commit failed
        if intent.args["from_disk"] is None:
            await driver.create(volume.disk, volume.size_bytes)
        else:
            await driver.clone(volume.disk, intent.text("from_disk"), volume.size_bytes)
        await driver.connect(front_of(volume))
        await self._settle(intent, "volume created", Event.CREATED)

    async def _create_snapshot(
        self, intent: Intent, snapshot: Snapshot, driver: StorageDriver
    ) -> None:
        volume_id = snapshot.volume_id
        quiesce = Quiesce(str(intent.args.get("quiesce", Quiesce.NONE)))
        async with self._freezes.quiet([volume_id] if volume_id else [], quiesce) as quiet:
            await driver.snapshot(snapshot.disk, intent.text("from_disk"), volume_id)
        # Not before: an attempt that will be tried again needs what it was promised.
        self._classes[intent.storage_class].promised.pop(snapshot.id, None)

        def created(tx: Transaction) -> None:
            row = tx.snapshot(intent.resource_id)
            if row is not None:
                status = move("snapshot", row.id, row.status, Event.CREATED)
                consistency, frozen_ms = quiet.of(volume_id)
                row = replace(row, consistency=consistency, frozen_ms=frozen_ms)
                tx.put_snapshot(replace(row, status=status, updated_at=now_timestamp()))
            tx.remove_intent(intent)

        await self._catalog.write("snapshot created", created)

    async def _give_up_create(self, intent: Intent, resource: str, reason: str) -> list[Intent]:
        def failed(tx: Transaction) -> list[Intent]:
            tx.remove_intent(intent)
            row = tx.volume(intent.resource_id) if resource == "volume" else None
            if row is not None:
                status = move(resource, row.id, row.status, Event.FAILED)
                tx.put_volume(replace(row, status=status, error=reason, updated_at=now_timestamp()))
                return [add_erase(tx, intent.storage_class, [row.disk], [row.id])]
            taken = tx.snapshot(intent.resource_id)
            if taken is not None:
                status = move(resource, taken.id, taken.status, Event.FAILED)
                now = now_timestamp()
                tx.put_snapshot(replace(taken, status=status, error=reason, updated_at=now))
                disks = [taken.disk, *release(tx, [taken])]
                return [add_erase(tx, intent.storage_class, disks, [])]
            return []

        erasures = await self._catalog.write(f"{resource} failed", failed)
        self._classes[intent.storage_class].promised.pop(intent.resource_id, None)
        return erasures

    # change

    async def _change_volume(self, intent: Intent, volume: Volume, driver: StorageDriver) -> None:
        size_bytes, perf_iops = intent.args["size_bytes"], intent.args["perf_iops"]
        changed = replace(
            volume,
            size_bytes=size_bytes if isinstance(size_bytes, int) else volume.size_bytes,
            perf_iops=perf_iops if isinstance(perf_iops, int) else volume.perf_iops,
        )
        if changed.size_bytes > volume.size_bytes:
            await driver.grow(volume.disk, changed.size_bytes)
            await driver.connect(front_of(changed))
        await self._settle(
            intent,
            "volume changed",
            Event.CHANGED,
            lambda row: replace(row, size_bytes=changed.size_bytes, perf_iops=changed.perf_iops),
        )

    async def _give_up_change(
        self, intent: Intent, reason: str, leftover: str | None
    ) -> list[Intent]:
        """The volume stays what it was, and says why; a disk made for nothing is erased."""

        def failed(tx: Transaction) -> list[Intent]:
            tx.remove_intent(intent)
            row = tx.volume(intent.resource_id)
            if row is not None:
                status = move("volume", row.id, row.status, Event.FAILED)
                tx.put_volume(replace(row, status=status, error=reason, updated_at=now_timestamp()))
            return [] if leftover is None else [add_erase(tx, intent.storage_class, [leftover], [])]

        return await self._catalog.write("volume change failed", failed)

    # revert

    async def _revert_volume(self, intent: Intent, volume: Volume, driver: StorageDriver) -> None:
        new_disk, old_disk = intent.text("new_disk"), intent.text("old_disk")
        keep_id = intent.args["keep_id"]
        if intent.phase == PREPARE:
            await driver.clone(new_disk, intent.text("from_disk"), volume.size_bytes)
            intent = await self._advance(intent, SWAP)
            # From the swap on its user may write to the new disk: no copy may take it for unused.
            await self._catalog.copied()
        if intent.phase == SWAP:
            try:
                await driver.swap(FrontSpec(volume.id, new_disk, volume.size_bytes))
            except InUse as err:
                raise StorageError(str(err)) from err
            intent = await self._advance(
                intent, SETTLE, lambda tx: exchange(tx, intent, volume.id, new_disk)
            )
        if keep_id is None:
            await driver.erase([old_disk])
        else:
            await driver.seal(old_disk)
        await self._settle(intent, "volume reverted", Event.CHANGED, also=_kept(keep_id))

    async def _advance(
        self, intent: Intent, phase: str, also: Callable[[Transaction], None] | None = None
    ) -> Intent:
        def advance(tx: Transaction) -> None:
            tx.put_phase(intent, phase)
            if also is not None:
                also(tx)

        await self._catalog.write(f"{intent.verb} {phase}", advance)
        return replace(intent, phase=phase)

    # erase

    async def _erase(self, intent: Intent, driver: StorageDriver) -> None:
        """Erase, and along with it what is next in the queue to be erased, in one command.

        Ten LVs removed by one command cost six tenths of ten commands (LVM 2.03.16, measured).
        """
        batch, keep = await self._catalog.read(lambda tx: _erasures(tx, intent))
        try:
            await self._erase_all(batch, keep, driver)
        except StorageOverdue:
            raise  # that command still runs
        except StorageError:
            if len(batch) == 1:
                raise
            # One of the others may be in the way, and has a turn of its own.
            await self._erase_all([intent], keep, driver)

    async def _erase_all(self, batch: list[Intent], keep: set[str], driver: StorageDriver) -> None:
        for volume_id in [volume_id for one in batch for volume_id in one.texts("fronts")]:
            try:
                await driver.disconnect(volume_id)
            except InUse as err:
                raise StorageError(str(err)) from err
        if keep:  # cannot be; but these would be somebody's bytes
            log.critical("refused to erase disks that are in use", disks=sorted(keep))
        disks = [disk for one in batch for disk in one.texts("disks") if disk not in keep]
        if disks:
            await driver.erase(disks)

        def erased(tx: Transaction) -> None:
            for one in batch:
                tx.remove_intent(one)

        await self._catalog.write("erased", erased)

    # rows

    async def _settle(
        self,
        intent: Intent,
        label: str,
        event: Event,
        edit: Callable[[Volume], Volume] | None = None,
        also: Callable[[Transaction], None] | None = None,
    ) -> None:
        """The last commit of a verb on a volume: its new state, and the intent off the journal."""

        def settle(tx: Transaction) -> None:
            row = tx.volume(intent.resource_id)
            if row is not None:
                status = move("volume", row.id, row.status, event)
                row = replace(row, status=status, error=None, updated_at=now_timestamp())
                tx.put_volume(edit(row) if edit is not None else row)
            if also is not None:
                also(tx)
            tx.remove_intent(intent)

        await self._catalog.write(label, settle)


def _rows(tx: Transaction, intent_id: int) -> tuple[Intent | None, Volume | None, Snapshot | None]:
    """An intent as it stands now, and what it is about."""
    intent = tx.intent(intent_id)
    if intent is None:
        return None, None, None
    if intent.verb is Verb.CREATE_SNAPSHOT:
        return intent, None, tx.snapshot(intent.resource_id)
    return intent, tx.volume(intent.resource_id), None


def _erasures(tx: Transaction, intent: Intent) -> tuple[list[Intent], set[str]]:
    """The erasures that may be carried out now, and those of their disks that must not be erased.

    Only what directly follows in the queue: an erasure must not overtake whoever reads its disk.
    """
    batch: list[Intent] = []
    for one in tx.intents_of(intent.storage_class, intent.id):
        if one.verb is not Verb.ERASE or len(batch) == _ERASED_AT_ONCE:
            break
        batch.append(one)
    return batch, tx.disks.to_keep([disk for one in batch for disk in one.texts("disks")])


def exchange(tx: Transaction, intent: Intent, volume_id: str, new_disk: str) -> None:
    """The volume's bytes are on the new disk now; the former one becomes a snapshot's."""
    volume = tx.volume(volume_id)
    if volume is None:
        return
    tx.put_volume(replace(volume, disk=new_disk))
    keep_id = intent.args["keep_id"]
    if isinstance(keep_id, str):
        now = now_timestamp()
        tx.add_snapshot(
            Snapshot(
                id=keep_id,
                project_id=volume.project_id,
                name=intent.text("keep_name"),
                size_bytes=volume.size_bytes,
                storage_class=volume.storage_class,
                status=CREATING,
                public=False,
                tags=(),
                volume_id=volume.id,
                parent=None,
                disk=volume.disk,
                created_at=now,
                updated_at=now,
            )
        )


def _kept(keep_id: object) -> Callable[[Transaction], None]:
    """Makes the snapshot of the former content available."""

    def kept(tx: Transaction) -> None:
        row = tx.snapshot(keep_id) if isinstance(keep_id, str) else None
        if row is not None:
            status = move("snapshot", row.id, row.status, Event.CREATED)
            tx.put_snapshot(replace(row, status=status, updated_at=now_timestamp()))

    return kept
