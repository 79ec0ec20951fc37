"""What guests have, and what they know of it: the catalog's rows kept true, and the guests told.

libvirt decides: after each of its events, and each connection, all of a connection's guests are
looked at, and the rows made to say what was seen, whoever did it. While a connection does not
answer, the rows stay as they were last seen, and health says so.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import BlockdError
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
#: Looks follow one another no sooner than they take themselves, but for this.
_LONGEST_REST_S: Final = 10.0

_Use = tuple[GuestKey, str]
_Seen = tuple[Guest, GuestDisk]


class GuestWatch:
    """Follows libvirt, and the catalog."""

    def __init__(self, catalog: Catalog, hypervisors: Hypervisors, shown: ShownSnapshots) -> None:
        """`shown` is told of what guests have now, or have no more."""
        self._shown = shown
        self._catalog, self._hypervisors = catalog, hypervisors
        # Volumes that verbs are about, whose rows are theirs to settle, how many at once; and for
        # each when a verb began or ended last: what was looked at before that is out of date.
        self._carried_out: Counter[str] = Counter()
        self._turns, self._last_turn = 0, dict[str, int]()
        self._looking: dict[str, int] = {}
        self._looked = asyncio.Condition()
        # How often each connection has told of its guests.
        self._sightings: Counter[str] = Counter()
        # Of each connection: the disks as they were seen last, and what guests would not be told of
        # them since. And for each disk the size that its guest was told.
        self._seen: dict[str, Mapping[_Use, _Seen]] = {}
        self._put_off: dict[str, set[tuple[_Use, str]]] = {}
        self._told: dict[_Use, int] = {}
        self._changes = {uri: asyncio.Event() for uri in hypervisors.uris}
        catalog.told.append(self._tell_all)

    def was_told(self, guest: GuestKey, volume: Volume) -> None:
        """A guest has just been given the volume as it is."""
        self._told[guest, volume.id] = volume.size_bytes

    @contextmanager
    def leaving(self, volume_id: str) -> Iterator[None]:
        """Leave the volume's rows to a verb, for the length of the block."""
        self._carried_out[volume_id] += 1
        self._turn(volume_id)
        try:
            yield
        finally:
            self._carried_out[volume_id] -= 1
            self._turn(volume_id)

    def _turn(self, volume_id: str) -> None:
        self._turns += 1
        self._last_turn[volume_id] = self._turns
        if not self._carried_out[volume_id]:
            del self._carried_out[volume_id]

    async def next_look(self) -> None:
        """Wait until some guests were looked at once more, but no longer than a second."""
        async with self._looked:
            try:
                async with asyncio.timeout(_NEXT_LOOK_S):
                    await self._looked.wait()
            except TimeoutError:
                return

    def sightings(self, uri: str) -> int:
        """How often this connection has told of its guests until now; for `seen_since`."""
        return self._sightings[uri]

    async def seen_since(self, uri: str, sightings: int) -> None:
        """Wait until this connection has told of its guests more often than so, however long.

        It is looked at whenever it comes back, and once a minute.
        """
        async with self._looked:
            await self._looked.wait_for(lambda: self._sightings[uri] > sightings)

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
        """Keep the rows, and what guests know of their disks, true: until cancelled.

        Each connection for itself: one that does not answer holds up no other.
        """
        async with asyncio.TaskGroup() as group:
            for uri in self._hypervisors.uris:
                group.create_task(self._follow_guests(uri), name=f"guests of {uri}")
                group.create_task(self._follow_volumes(uri), name=f"volumes of {uri}")

    async def _follow_guests(self, uri: str) -> None:
        while True:
            began = time.monotonic()
            await self._look(uri)
            async with self._looked:
                self._looked.notify_all()
            # Thousands of domains take seconds, and events may come without end.
            await asyncio.sleep(min(time.monotonic() - began, _LONGEST_REST_S))
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._hypervisors.changed(uri)
            except TimeoutError:
                continue

    async def _follow_volumes(self, uri: str) -> None:
        while True:
            await self._changes[uri].wait()
            self._changes[uri].clear()
            try:
                await self._tell_guests(uri)
            except BlockdError as err:
                log.warning("guests are not told of their disks", reason=str(err))
            except Exception:
                log.exception("guests are not told of their disks")

    def _tell_all(self) -> None:
        for changes in self._changes.values():
            changes.set()

    async def _look(self, uri: str) -> None:
        """Make the rows of one connection say what its guests have."""
        self._looking[uri] = turn = self._turns
        try:
            sighting = await self._hypervisors.guests(uri)
            self._sightings[uri] += 1
            seen = {
                (guest.key, disk.volume_id): (guest, disk)
                for guest in sighting.guests
                for disk in guest.disks
            }
            unseen = sighting.unseen.keys()
            seen, known = await self._catalog.read(lambda tx: (_known(tx, seen), _rows(tx, uri)))
            if self._differs(seen, unseen, known):
                await self._catalog.write(
                    "attachments seen", lambda tx: self._adopt(tx, uri, seen, unseen, turn)
                )
                for _, resource_id in known.keys() ^ seen.keys():
                    self._shown.settle_soon(resource_id)
            self._seen[uri], self._put_off[uri] = seen, set()
            self._changes[uri].set()
        except BlockdError as err:
            log.debug("guests not seen", uri=uri, reason=str(err))
        except Exception:
            log.exception("guests not seen", uri=uri)  # whatever it was, the next look may do
        finally:
            del self._looking[uri]
            oldest = min(self._looking.values(), default=self._turns)
            self._last_turn = {
                volume_id: at for volume_id, at in self._last_turn.items() if at > oldest
            }

    def _differs(
        self,
        seen: Mapping[_Use, _Seen],
        unseen: Collection[GuestKey],
        rows: Mapping[_Use, Attachment],
    ) -> bool:
        at_rest = {
            use: row
            for use, row in rows.items()
            if row.volume_id not in self._carried_out and row.guest not in unseen
        }
        return any(use not in rows for use in seen) or any(
            use not in seen or row != _as_seen(row, *seen[use]) for use, row in at_rest.items()
        )

    def _adopt(
        self,
        tx: Transaction,
        uri: str,
        seen: Mapping[_Use, _Seen],
        unseen: Collection[GuestKey],
        turn: int,
    ) -> None:
        """Args: `turn`: the last one when the look began; `unseen`: nothing is known of them."""
        rows = _rows(tx, uri)
        for use, row in rows.items():
            # What a verb has changed since: whatever it was, libvirt tells of it.
            if row.guest in unseen or self._is_stale(row.volume_id, turn):
                continue
            if use not in seen:
                forget(tx, row)
            elif row != (now := _as_seen(row, *seen[use])):
                tx.attachments.put(now)
        for (key, volume_id), (guest, disk) in seen.items():
            if (key, volume_id) not in rows and not self._is_stale(volume_id, turn):
                log.info("seen attached", resource_id=volume_id, domain=guest.name)
                made = AttachmentStatus.ATTACHED, now_timestamp()
                tx.attachments.put(
                    Attachment(new_id(), volume_id, key, guest.name, disk.target, *made)
                )

    def _is_stale(self, volume_id: str, turn: int) -> bool:
        """Whether a verb is at the volume, or has been since `turn`."""
        return volume_id in self._carried_out or self._last_turn.get(volume_id, 0) > turn

    async def _tell_guests(self, uri: str) -> None:
        """Guests learn of what has become of their disks: larger, or other performance.

        The size is told to whom it was not told yet by this daemon, as libvirt does not say what a
        guest knows. What a disk is bound to, libvirt says.
        """
        seen = self._seen.get(uri, {})
        for attachment, size_bytes, perf_iops in await self._catalog.read(
            lambda tx: tx.attachments.told_of()
        ):
            use = attachment.guest, attachment.volume_id
            if use not in seen or use[1] in self._carried_out:
                continue
            _, disk = seen[use]
            if perf_iops is not None and disk.iops != perf_iops:
                limit = partial(self._hypervisors.limit, *use, perf_iops)
                if await self._tell(uri, use, f"at most {perf_iops} IO/s", limit):
                    self._bound(uri, use, perf_iops)
            if disk.live and self._told.get(use) != size_bytes:
                resize = partial(self._hypervisors.resize, *use, size_bytes)
                if await self._tell(uri, use, f"{size_bytes} bytes", resize):
                    self._told[use] = size_bytes

    async def _tell(
        self, uri: str, use: _Use, what: str, call: Callable[[], Awaitable[None]]
    ) -> bool:
        """Whether it was told; if not, it is tried again after the next look, in a minute or so."""
        if (use, what) in self._put_off[uri]:
            return False
        try:
            await call()
        except Exception as err:
            self._put_off[uri].add((use, what))
            if isinstance(err, BlockdError):
                log.warning("guest not told", volume_id=use[1], what=what, reason=str(err))
            else:
                log.exception("guest not told", volume_id=use[1], what=what)
            return False
        log.info("guest told of its disk", volume_id=use[1], what=what)
        return True

    def _bound(self, uri: str, use: _Use, iops: int) -> None:
        """As if it had been seen so already: the next look may be a minute away."""
        seen = self._seen.get(uri, {})
        if use in seen:
            guest, disk = seen[use]
            self._seen[uri] = {**seen, use: (guest, replace(disk, iops=iops))}


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
