"""What guests have, and what they know of it: the catalog's rows kept true, and the guests told.

libvirt decides: after each of its events, and each connection, all of a connection's guests are
looked at, and the rows made to say what was seen, whoever did it. While a connection does not
answer, the rows stay as they were last seen, and health says so.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import BlockdError, GuestRefused, HypervisorUnreachable
from blockd.domain.guest import Attachment, AttachmentStatus, Guest, GuestDisk, GuestKey
from blockd.domain.intent import new_id
from blockd.domain.states import DELETED
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.service.guest_ports import Hypervisors
from blockd.service.shown_snapshots import ShownSnapshots

log = structlog.get_logger()

#: What libvirt does not tell of by an event, such as a definition edited offline, is seen by then.
_LOOK_S: Final = 60.0
#: A domain's events may all be late while its guest is busy letting go of a disk.
_NEXT_LOOK_S: Final = 1.0

_Use = tuple[GuestKey, str]
_Seen = tuple[Guest, GuestDisk]


class GuestWatch:
    """Follows libvirt, and the catalog."""

    def __init__(self, catalog: Catalog, hypervisors: Hypervisors, shown: ShownSnapshots) -> None:
        """`shown` is told of what guests have now, or have no more."""
        self._shown = shown
        self._catalog, self._hypervisors = catalog, hypervisors
        # Volumes that verbs are about, whose rows are theirs to settle; and how often one has begun
        # or ended: what was looked at meanwhile is out of date.
        self._carried_out: Counter[str] = Counter()
        self._turns = 0
        self._looked = asyncio.Condition()
        # What a guest was told of a volume last: its size, and its bound of operations a second.
        self._told: dict[_Use, tuple[int, int | None]] = {}
        self._changes = asyncio.Event()
        catalog.told.append(self._changes.set)

    def was_told(self, guest: GuestKey, volume: Volume) -> None:
        """A guest has just been given the volume as it is."""
        self._told[guest, volume.id] = (volume.size_bytes, volume.perf_iops)

    @contextmanager
    def leaving(self, volume_id: str) -> Iterator[None]:
        """Leave the volume's rows to a verb, for the length of the block."""
        self._carried_out[volume_id] += 1
        self._turns += 1
        try:
            yield
        finally:
            self._carried_out[volume_id] -= 1
            self._turns += 1

    async def next_look(self) -> None:
        """Wait until all guests were looked at once more, but no longer than a second."""
        async with self._looked:
            try:
                async with asyncio.timeout(_NEXT_LOOK_S):
                    await self._looked.wait()
            except TimeoutError:
                return

    async def start(self) -> None:
        """Of connections that are not configured any more nobody can ever tell anything again."""
        known = set(self._hypervisors.uris)

        def forget_gone(tx: Transaction) -> int:
            gone = [one for one in tx.attachments.all() if one.guest.uri not in known]
            for one in gone:
                forget(tx, one)
            return len(gone)

        if await self._catalog.read(
            lambda tx: any(one.guest.uri not in known for one in tx.attachments.all())
        ):
            rows = await self._catalog.read(lambda tx: tx.attachments.all())
            count = await self._catalog.write("attachments forgotten", forget_gone)
            for one in rows:
                self._shown.settle_soon(one.volume_id)
            log.warning("attachments of connections not configured any more", count=count)

    async def run(self) -> None:
        """Keep the rows, and what guests know of their disks, true: until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_guests())
            group.create_task(self._follow_volumes())

    async def _follow_guests(self) -> None:
        while True:
            for uri in self._hypervisors.uris:
                await self._look(uri)
            async with self._looked:
                self._looked.notify_all()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._hypervisors.changed()
            except TimeoutError:
                continue

    async def _follow_volumes(self) -> None:
        while True:
            await self._changes.wait()
            self._changes.clear()
            try:
                await self._tell_guests()
            except BlockdError as err:
                log.warning("guests are not told of their disks", reason=str(err))
            except Exception:
                log.exception("guests are not told of their disks")

    async def _look(self, uri: str) -> None:
        """Make the rows of one connection say what its guests have."""
        turns = self._turns
        try:
            guests = await self._hypervisors.guests(uri)
            seen = {
                (guest.key, disk.volume_id): (guest, disk)
                for guest in guests
                for disk in guest.disks
            }
            seen, known = await self._catalog.read(lambda tx: (_known(tx, seen), _rows(tx, uri)))
            if self._differs(seen, known):
                await self._catalog.write(
                    "attachments seen", lambda tx: self._adopt(tx, uri, seen, turns)
                )
                for _, resource_id in known.keys() ^ seen.keys():
                    self._shown.settle_soon(resource_id)
            await self._tell_guests(seen)
        except BlockdError as err:
            log.debug("guests not seen", uri=uri, reason=str(err))
        except Exception:
            log.exception("guests not seen", uri=uri)  # whatever it was, the next look may do

    def _differs(self, seen: Mapping[_Use, _Seen], rows: Mapping[_Use, Attachment]) -> bool:
        at_rest = {use: row for use, row in rows.items() if not self._carried_out[row.volume_id]}
        return any(use not in rows for use in seen) or any(
            use not in seen or row != _as_seen(row, *seen[use]) for use, row in at_rest.items()
        )

    def _adopt(self, tx: Transaction, uri: str, seen: Mapping[_Use, _Seen], turns: int) -> None:
        if turns != self._turns:
            return  # a verb has changed something since: whatever it was, libvirt tells of it
        rows = _rows(tx, uri)
        for use, row in rows.items():
            if self._carried_out[row.volume_id]:
                continue
            if use not in seen:
                forget(tx, row)
            elif row != (now := _as_seen(row, *seen[use])):
                tx.attachments.put(now)
        for (key, volume_id), (guest, disk) in seen.items():
            if (key, volume_id) not in rows:
                log.info("seen attached", resource_id=volume_id, domain=guest.name)
                made = AttachmentStatus.ATTACHED, now_timestamp()
                tx.attachments.put(
                    Attachment(new_id(), volume_id, key, guest.name, disk.target, *made)
                )

    async def _tell_guests(self, seen: Mapping[_Use, _Seen] | None = None) -> None:
        """Guests learn of what has become of their disks: larger, or other performance.

        Args:
            seen: the guests as they were just looked at: who has not been told anything yet, by
                this daemon, is told now. None: only who was told before.
        """
        if not self._hypervisors.uris:
            return
        rows = await self._catalog.read(lambda tx: tx.attachments.told_of())
        for attachment, size_bytes, perf_iops in rows:
            use, now = (attachment.guest, attachment.volume_id), (size_bytes, perf_iops)
            before = self._told.get(use)
            if self._carried_out[attachment.volume_id] or before == now:
                continue
            found = None if seen is None else seen.get(use)
            if before is None and found is None:
                continue
            await self._tell_guest(attachment, before, now)

    async def _tell_guest(
        self,
        attachment: Attachment,
        before: tuple[int, int | None] | None,
        now: tuple[int, int | None],
    ) -> None:
        place = attachment.guest, attachment.target
        try:
            if before is None or before[0] != now[0]:
                await self._hypervisors.resize(*place, now[0])
            if before is not None and before[1] != now[1]:
                await self._hypervisors.limit(*place, now[1])
        except (GuestRefused, HypervisorUnreachable) as err:
            # Tried again when it is looked at next, within a minute.
            log.warning("guest not told", volume_id=attachment.volume_id, reason=str(err))
            return
        self._told[attachment.guest, attachment.volume_id] = now
        log.info("guest told of its disk", volume_id=attachment.volume_id, size_bytes=now[0])


def _rows(tx: Transaction, uri: str) -> dict[_Use, Attachment]:
    """What the catalog says of one connection."""
    return {(one.guest, one.volume_id): one for one in tx.attachments.all() if one.guest.uri == uri}


def _known(tx: Transaction, seen: Mapping[_Use, _Seen]) -> dict[_Use, _Seen]:
    """Those of volumes and snapshots that there are: a front may be of another catalog."""
    found = {use: tx.volume(use[1]) or tx.snapshot(use[1]) for use in seen}
    return {
        use: seen[use]
        for use, row in found.items()
        if row is not None and row.status is not DELETED
    }


def _as_seen(row: Attachment, guest: Guest, disk: GuestDisk) -> Attachment:
    return replace(
        row, domain_name=guest.name, target=disk.target, status=AttachmentStatus.ATTACHED
    )


def forget(tx: Transaction, attachment: Attachment) -> None:
    """The guest has it no more; `last_detached_at` says since when, if it ever had it."""
    row = tx.attachments.get(attachment.id)
    if row is None:
        return
    tx.attachments.remove(row.id)
    volume = tx.volume(row.volume_id)
    if volume is not None and row.status is not AttachmentStatus.ATTACHING:
        now = now_timestamp()
        tx.put_volume(replace(volume, last_detached_at=now, updated_at=now))
