"""Giving volumes, and snapshots to be read, to guests, and taking them back.

A row whose status is `attaching` or `detaching` is the journal of a verb of ours. The task that
carries it out settles it; what is left after a crash, the first look at its connection settles
(`guest_watch.py`), as libvirt alone knows what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import (
    BlockdError,
    GuestRefused,
    HypervisorUnreachable,
    InUse,
    PreconditionFailed,
    TransientState,
)
from blockd.domain.guest import (
    Attachment,
    AttachmentStatus,
    DiskOrder,
    Guest,
    GuestDisk,
)
from blockd.domain.intent import new_id
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import AVAILABLE, Event, move
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.service.classes import StorageClasses
from blockd.service.guest_ports import Hypervisors
from blockd.service.guest_watch import GuestWatch, forget
from blockd.service.rows import living_snapshot, living_volume, readable_snapshot
from blockd.service.shown_snapshots import ShownSnapshots, front_of_snapshot
from blockd.service.steps import front_of

log = structlog.get_logger()

ATTACHING, ATTACHED, DETACHING = AttachmentStatus


class Attachments:
    """All verbs raise `NotFound` for what does not exist or is deleted."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        hypervisors: Hypervisors,
        watch: GuestWatch,
        shown: ShownSnapshots,
        *,
        detach_timeout_s: float,
    ) -> None:
        """`detach_timeout_s`: how long a guest may take to let go of a disk."""
        self._catalog, self._classes, self._hypervisors = catalog, classes, hypervisors
        self._detach_timeout_s = detach_timeout_s
        self._watch, self._tasks = watch, set[asyncio.Task[None]]()
        self._shown = shown

    # verbs

    async def attach(
        self, volume_id: str, domain: str, target: str | None, uri: str | None
    ) -> None:
        """Give the volume to a guest, running or not; it has it when this returns.

        Args:
            domain: name or UUID.
            target: e.g. `vdb`; None: the next free one.
            uri: of which connection, where several have a domain of this name.

        Raises:
            InUse: another guest has it, or its device is open on the host.
            TransientState: the volume, or its attachment, is being changed.
            GuestRefused: there is no such domain, or libvirt says no.
            HypervisorUnreachable: libvirt does not answer.
        """
        guest = await self._hypervisors.find(domain, uri)
        await self._carry_out(volume_id, self._attach_to(volume_id, guest, target))

    async def _attach_to(self, volume_id: str, guest: Guest, target: str | None) -> None:
        def begin(tx: Transaction) -> tuple[Volume, Attachment]:
            volume = living_volume(tx, volume_id)
            if volume.status is not AVAILABLE:  # raises
                move("volume", volume_id, volume.status, Event.CHANGE)
            for other in volume.attachments:
                if other.status is not ATTACHED:
                    raise TransientState("volume", volume_id, other.status)
                raise PreconditionFailed(
                    "resource_still_in_use",
                    f"volume {volume_id} is attached to {other.domain_name}: detach it first",
                )
            self._classes.check_there(volume)
            if self._classes.is_open(volume.storage_class, volume_id):
                raise InUse(volume_id, "attach")
            attachment = _attaching(volume_id, guest, target)
            tx.attachments.put(attachment)
            return volume, attachment

        volume, attachment = await self._catalog.write("volume attaching", begin)
        await self._attach(volume, attachment)

    async def attach_snapshot(
        self, snapshot_id: str, domain: str, target: str | None, uri: str | None
    ) -> None:
        """Let a guest read a snapshot, as `attach`; several guests may have it.

        Raises:
            PreconditionFailed: it has no bytes, or this guest has it already.
            TransientState: it is being made, exported or merged.
            StorageError, StorageBusy: it cannot be made readable now.
            GuestRefused, HypervisorUnreachable: as `attach`.
        """
        guest = await self._hypervisors.find(domain, uri)
        await self._carry_out(snapshot_id, self._show_to(snapshot_id, guest, target))

    async def _show_to(self, snapshot_id: str, guest: Guest, target: str | None) -> None:
        def begin(tx: Transaction) -> tuple[Snapshot, Attachment]:
            snapshot = readable_snapshot(tx, snapshot_id)
            self._classes.check_there(snapshot)
            if any(one.guest == guest.key for one in snapshot.attachments):
                raise PreconditionFailed(
                    "resource_still_in_use",
                    f"snapshot {snapshot_id} is attached to {guest.name} already",
                )
            attachment = _attaching(snapshot_id, guest, target)
            tx.attachments.put(attachment)
            return snapshot, attachment

        snapshot, attachment = await self._catalog.write("snapshot attaching", begin)
        try:
            await self._shown.show(snapshot)
        except Exception:
            await self._settle_as(attachment, None)  # libvirt was not asked yet
            raise
        await self._attach(snapshot, attachment)

    async def detach(self, volume_id: str, domain: str | None) -> None:
        """Take the volume from its guest; the guest has let go of it when this returns.

        Args:
            domain: name or UUID; None where there is but one.

        Raises:
            PreconditionFailed: it is attached to no such domain.
            TransientState: its attachment is being changed.
            GuestRefused: the guest does not let go of it in time, or libvirt says no: it stays.
            HypervisorUnreachable: libvirt does not answer.
        """
        await self._carry_out(volume_id, self._detach_from("volume", volume_id, domain))

    async def detach_snapshot(self, snapshot_id: str, domain: str | None) -> None:
        """Take the snapshot from a guest, as `detach`."""
        await self._carry_out(snapshot_id, self._detach_from("snapshot", snapshot_id, domain))

    async def _detach_from(self, resource: str, volume_id: str, domain: str | None) -> None:
        find = living_volume if resource == "volume" else living_snapshot

        def begin(tx: Transaction) -> Attachment:
            attachments = find(tx, volume_id).attachments
            having = ", ".join(one.domain_name for one in attachments) or "no domain"
            names = [
                one for one in attachments if domain in (None, one.domain_name, one.guest.domain_id)
            ]
            # A UUID is nobody else's, whatever others call themselves.
            names = [one for one in names if one.guest.domain_id == domain] or names
            if len(names) != 1:
                what = "say from which" if domain is None and names else f"not to {domain}"
                told = f"{resource} {volume_id} is attached to {having}"
                told += f": {what}" if names or domain is not None else ""
                raise PreconditionFailed("resource_not_usable", told)
            (attachment,) = names
            if attachment.status is not ATTACHED:
                raise TransientState(resource, volume_id, attachment.status)
            attachment = replace(attachment, status=DETACHING)
            tx.attachments.put(attachment)
            return attachment

        await self._detach(await self._catalog.write(f"{resource} detaching", begin))

    async def _carry_out(self, volume_id: str, work: Coroutine[None, None, None]) -> None:
        """To its end, whoever asked for it and has gone meanwhile."""
        await asyncio.shield(self._begin(volume_id, work))

    def _begin(self, volume_id: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        async def alone() -> None:
            with self._watch.leaving(volume_id):
                try:
                    await work
                except Exception:  # whatever it was: the device is as the rows say
                    await self._shown.settle(volume_id)
                    raise
                await self._shown.settle(volume_id)

        task = asyncio.create_task(alone(), name=f"attachment of {volume_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _order(self, row: Volume | Snapshot, attachment: Attachment) -> DiskOrder:
        driver, target = self._classes[row.storage_class].driver, attachment.target or None
        if isinstance(row, Snapshot):
            path = driver.device(front_of_snapshot(row)).path
            return DiskOrder(path, row.id, target, None, discards=False, is_read_only=True)
        path, discards = driver.device(front_of(row)).path, not driver.traits.is_thick
        return DiskOrder(path, row.id, target, row.perf_iops, discards=discards)

    async def _attach(self, volume: Volume | Snapshot, attachment: Attachment) -> None:
        try:
            order = self._order(volume, attachment)
            target = await self._hypervisors.attach(attachment.guest, order)
        except Exception as err:
            # It may have come about all the same: what libvirt has is what counts.
            log.warning("not attached", volume_id=volume.id, reason=str(err))
            await self._settle_by_look(attachment)
            raise
        if isinstance(volume, Volume):
            self._watch.was_told(attachment.guest, volume)
        await self._put(replace(attachment, target=target, status=ATTACHED), "volume attached")
        log.info("volume attached", volume_id=volume.id, domain=attachment.domain_name)

    async def _detach(self, attachment: Attachment) -> None:
        try:
            await self._let_go(attachment)
            await self._detached(attachment)
        except Exception as err:
            log.warning("not detached", volume_id=attachment.volume_id, reason=str(err))
            await self._settle_by_look(attachment)
            raise

    async def _detached(self, attachment: Attachment) -> None:
        await self._catalog.write("volume detached", lambda tx: forget(tx, attachment))
        log.info("volume detached", volume_id=attachment.volume_id, domain=attachment.domain_name)

    async def _let_go(self, attachment: Attachment) -> None:
        """The running guest first: if it does not, its definition stays as it was, too."""
        disk = await self._seen(attachment)
        if disk is not None and disk.live:
            await self._hypervisors.detach(attachment.guest, attachment.volume_id, live=True)
            try:
                async with asyncio.timeout(self._detach_timeout_s):
                    while disk is not None and disk.live:
                        await self._watch.next_look()
                        disk = await self._seen(attachment)
            except TimeoutError:
                raise GuestRefused(
                    f"domain {attachment.domain_name} did not let go of "
                    f"{attachment.volume_id} within {self._detach_timeout_s:g} s: it stays "
                    "attached; unmount it in the guest, or shut the guest down, and detach again"
                ) from None
        if disk is not None and disk.persistent:
            await self._hypervisors.detach(attachment.guest, attachment.volume_id, live=False)

    async def _seen(self, attachment: Attachment) -> GuestDisk | None:
        found = await self._hypervisors.guest(attachment.guest)
        return None if found is None else _disk_of(found, attachment.volume_id)

    async def _settle_by_look(self, attachment: Attachment) -> None:
        """A verb that failed: the row says what libvirt has, or is left to the next look.

        Raises nothing: whoever asked is told why the verb failed.
        """
        try:
            disk = await self._seen(attachment)
        except (HypervisorUnreachable, GuestRefused):
            return  # `attached`, or gone, as the first look at this connection finds it
        except Exception:
            log.exception("what a guest has is not known", domain=attachment.domain_name)
            return
        await self._settle_as(attachment, disk)

    async def _settle_as(self, attachment: Attachment, disk: GuestDisk | None) -> None:
        """The row of a verb that failed says so; None: the guest has it not. Raises nothing."""
        try:
            if disk is None:
                await self._catalog.write("volume not attached", lambda tx: forget(tx, attachment))
            else:
                seen = replace(attachment, target=disk.target, status=ATTACHED)
                await self._put(seen, "volume stays attached")
        except BlockdError as err:
            log.warning("an attachment is not settled yet", reason=str(err))
        except Exception:
            log.exception("an attachment is not settled yet")

    async def _put(self, attachment: Attachment, label: str) -> None:
        def put(tx: Transaction) -> None:
            if tx.attachments.get(attachment.id) is not None:
                tx.attachments.put(attachment)

        await self._catalog.write(label, put)

    # start and stop

    async def start(self) -> None:
        """What an earlier daemon left of a detachment goes on; the first look settles the rest."""
        for one in await self._catalog.read(lambda tx: tx.attachments.all()):
            if one.status is DETACHING:
                self._begin(one.volume_id, self._detach_again(one))

    async def stop(self) -> None:
        """Leave what is under way: its rows say how far it is, and the next start settles them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _detach_again(self, attachment: Attachment) -> None:
        """As `_detach`, but when libvirt is away, or goes away, it goes on as soon as it is back.

        Nobody waits for the answer, and so nobody would ask once more.
        """
        uri = attachment.guest.uri
        while True:
            sightings = self._watch.sightings(uri)
            try:
                await self._let_go(attachment)
                await self._detached(attachment)
            except HypervisorUnreachable as err:
                told = {"volume_id": attachment.volume_id, "reason": str(err)}
                log.info("not detached yet, will be when libvirt answers", **told)
                await self._watch.seen_since(uri, sightings)
            except Exception as err:  # noqa: BLE001 - whatever it is, the row says what there is
                log.warning("not detached", volume_id=attachment.volume_id, reason=str(err))
                await self._settle_by_look(attachment)
                return
            else:
                return


def _attaching(resource_id: str, guest: Guest, target: str | None) -> Attachment:
    """The row of one that begins."""
    return Attachment(
        id=new_id(),
        volume_id=resource_id,
        guest=guest.key,
        domain_name=guest.name,
        target=target or "",
        status=ATTACHING,
        created_at=now_timestamp(),
    )


def _disk_of(guest: Guest, volume_id: str) -> GuestDisk | None:
    return next((disk for disk in guest.disks if disk.volume_id == volume_id), None)
