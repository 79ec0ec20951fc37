"""Fronts: the devices through which volumes are used, and snapshots that guests read.

A front is a dm-linear of exactly the volume's size over its LV, with the uuid
`BLOCKD-<class>-<catalog>-<volume>` and the link `/dev/blockd/<volume>`. A snapshot's is named after
the snapshot, and read-only. They are derived from the catalog at every start, so they need no
journal. Tried: docs/decisions/0003-fronts.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from blockd.domain.effects import SideEffects
from blockd.domain.errors import InUse, StorageError, StorageOverdue
from blockd.domain.units import SECTOR_BYTES
from blockd.host.command import Companion
from blockd.host.uevents import wait_for_node
from blockd.storage.dm import DeviceInfo, DeviceMapper, DeviceOpen
from blockd.storage.suspension import Suspension, end_of

T = TypeVar("T")
log = structlog.get_logger()

LINK_DIRECTORY = Path("/dev/blockd")
_NAME_PREFIX, _UUID_PREFIX = "blockd-", "BLOCKD-"


@dataclass(frozen=True, slots=True)
class Lower:
    """What lies under a front: the device `number` (`major:minor`) from its first sector on."""

    number: str
    size_bytes: int


def front_owner(class_name: str, catalog_id: str) -> str:
    """What tells the fronts of one class of one catalog from others'."""
    return f"{class_name}-{catalog_id}"


def resume_fronts(mapper: DeviceMapper, owner: str, effects: SideEffects) -> None:
    """Resume what a crash left suspended, and remove what it left without a table.

    First a table that was loaded and not yet live is dropped: a resume would make it live, and the
    front would show another disk to whoever has opened it meanwhile.
    """
    prefix = _uuid_prefix(owner)
    for info in mapper.devices(_NAME_PREFIX):
        if not info.uuid.startswith(prefix):
            continue
        mapper.clear(info.uuid)
        if info.suspended:
            log.warning("resuming front left suspended", uuid=info.uuid)
            mapper.resume(info.uuid)
        if not info.has_table:
            mapper.remove(info.uuid)
            with effects.around("link remove"):
                (LINK_DIRECTORY / info.uuid.removeprefix(prefix)).unlink(missing_ok=True)


def _uuid_prefix(owner: str) -> str:
    return f"{_UUID_PREFIX}{owner}-"


class Fronts:
    """The fronts of one storage class of one catalog."""

    def __init__(
        self,
        mapper: DeviceMapper,
        watchdog: Companion,
        effects: SideEffects,
        *,
        owner: str,
        max_suspend_s: float,
    ) -> None:
        """`owner`: see `front_owner`."""
        self._mapper, self._effects = mapper, effects
        self._uuid_prefix = _uuid_prefix(owner)
        self._max_suspend_s = max_suspend_s
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Suspending waits for I/O in flight; resuming must never wait for a free thread.
        self._threads = ThreadPoolExecutor(8, "dm")
        self._suspension = Suspension(mapper, watchdog, self.in_thread, max_suspend_s)

    def close(self) -> None:
        """Let go of the threads; fronts stay as they are."""
        self._threads.shutdown(wait=False)

    def path(self, volume_id: str) -> Path:
        """The link that users open."""
        return LINK_DIRECTORY / volume_id

    def is_open(self, volume_id: str) -> bool:
        """Whether anybody holds the front open."""
        info = self._mapper.info(self._uuid(volume_id))
        return info is not None and info.open_count > 0

    def ours(self) -> dict[str, DeviceInfo]:
        """All fronts of this class and catalog, by volume id."""
        return {
            info.uuid.removeprefix(self._uuid_prefix): info
            for info in self._mapper.devices(_NAME_PREFIX)
            if info.uuid.startswith(self._uuid_prefix)
        }

    def wrong_links(self) -> dict[str, DeviceInfo | None]:
        """Names in the folder of links that do not lead to the front of that name, and the front.

        Also those of our own fronts that are not there.
        """
        there = LINK_DIRECTORY.iterdir() if LINK_DIRECTORY.is_dir() else ()
        names = {link.name for link in there if link.is_symlink()}
        fronts = {name: self._front_named(name) for name in sorted(names | self.ours().keys())}
        return {
            name: front
            for name, front in fronts.items()
            if front is None or not _leads_to(self.path(name), front)
        }

    def mend_link(self, name: str) -> None:
        """Make a wrong link lead to its front, or remove it where there is none."""
        front = self.wrong_links().get(name)
        if front is not None:
            self._link(name, front)
        elif self._front_named(name) is None:
            with self._effects.around("link remove"):
                self.path(name).unlink(missing_ok=True)

    def _front_named(self, name: str) -> DeviceInfo | None:
        """Of whichever class or catalog: the folder is for all of them."""
        info = self._mapper.info_of_name(_NAME_PREFIX + name)
        return info if info is not None and info.uuid.startswith(_UUID_PREFIX) else None

    def number_behind(self, volume_id: str) -> str | None:
        """`major:minor` of the device under the front, None without a front or a table."""
        uuid = self._uuid(volume_id)
        info = self._mapper.info(uuid)
        if info is None or not info.has_table:
            return None
        return self._mapper.table(uuid)[0].params.split()[0]

    async def connect(
        self, volume_id: str, lower: Lower, size_bytes: int, *, read_only: bool = False
    ) -> None:
        """Make the front, or grow it, or leave it as it is; it never shrinks.

        Raises:
            StorageError: it lies over another device, can be written to though it must not, or
                the kernel refused.
        """
        async with self._lock(volume_id):
            uuid = self._uuid(volume_id)
            info = self._mapper.info(uuid)
            if info is None or not info.has_table:
                await self._make(volume_id, lower, size_bytes, read_only=read_only)
                return
            if read_only and not info.read_only:
                raise StorageError(f"the device of snapshot {volume_id} can be written to")
            (target,) = self._mapper.table(uuid)
            if target.params != f"{lower.number} 0":
                raise StorageError(f"volume {volume_id} has another disk behind its front")
            if target.length_sectors < size_bytes // SECTOR_BYTES:
                await self._grow(uuid, lower, size_bytes)
            self._link(volume_id, info)

    async def swap(self, volume_id: str, lower: Lower, size_bytes: int) -> None:
        """Put `lower` behind the front.

        The open count is read while the front is suspended: who opens it later cannot have read
        or written a byte before the new table is live, so there is no race to lose. The new table
        is loaded only then: until it is known to be wanted, no resume of anybody's, the watchdog's
        least of all, must find one to make live.

        Raises:
            InUse: somebody holds it open; nothing changed.
        """
        async with self._lock(volume_id):
            uuid = self._uuid(volume_id)
            info = self._mapper.info(uuid)
            if info is None or not info.has_table:
                await self._make(volume_id, lower, size_bytes)
                return
            (target,) = self._mapper.table(uuid)
            wanted = (size_bytes // SECTOR_BYTES, f"{lower.number} 0")
            if (target.length_sectors, target.params) == wanted:
                return
            began = time.monotonic()
            async with self._suspension.suspended(uuid, freeze=False):
                if self.is_open(volume_id):
                    raise InUse(volume_id, "revert")
                if time.monotonic() - began > self._max_suspend_s / 2:
                    raise StorageOverdue("suspending the volume took too long to swap its disk")
                await self._load(uuid, lower, size_bytes)
                if time.monotonic() - began >= self._max_suspend_s:
                    # The watchdog may have resumed the front before the load, for others to open.
                    raise StorageOverdue("loading the new table took too long to swap the disk")

    async def disconnect(self, volume_id: str) -> None:
        """Remove the front, if there is one.

        Raises:
            InUse: somebody holds it open.
        """
        async with self._lock(volume_id):
            info = self._mapper.info(self._uuid(volume_id))
            is_snapshots = info is not None and info.read_only
            if is_snapshots:
                # Before the device: nobody makes this link again, should it be left by a crash.
                self._unlink(volume_id)
            try:
                await self.in_thread(lambda: self._remove(volume_id))
            except DeviceOpen as err:
                if info is not None:
                    self._link(volume_id, info)
                raise InUse(volume_id, "delete", "snapshot" if is_snapshots else "volume") from err

    @asynccontextmanager
    async def still(
        self, volume_ids: Sequence[str], keep_until: Callable[[Awaitable[None]], None]
    ) -> AsyncIterator[None]:
        """The fronts of these volumes, as far as they are up, suspended together.

        No write passes any of them, file systems mounted on them are frozen. Nothing within may
        wait for a file to be written: the daemon's own file system may lie on one of them.

        Args:
            keep_until: one whose disk does not answer is left, as the turns of other classes may be
                held meanwhile; this is told what must come to its end before anything else is done.

        Raises:
            StorageOverdue: they were suspended for longer than allowed, so what was done within may
                have seen writes; or one is not suspended, or not resumed, in time.
            StorageError: one cannot be suspended; all are resumed.
        """
        late: list[asyncio.Future[None]] = []
        async with AsyncExitStack() as locks:
            for volume_id in sorted(volume_ids):
                await locks.enter_async_context(self._lock(volume_id))
            uuids = [self._uuid(volume_id) for volume_id in sorted(volume_ids)]
            there = [uuid for uuid in uuids if self._mapper.info(uuid) is not None]
            try:
                async with AsyncExitStack() as stack:
                    if there:
                        suspended = self._suspension.suspended(*there, freeze=True, late=late)
                        await stack.enter_async_context(suspended)
                    yield
            finally:
                if late:
                    keep_until(end_of(late, locks.pop_all()))

    async def _make(
        self, volume_id: str, lower: Lower, size_bytes: int, *, read_only: bool = False
    ) -> None:
        uuid = self._uuid(volume_id)
        if self._mapper.info(uuid) is None:
            self._mapper.create(_NAME_PREFIX + volume_id, uuid)
        try:
            await self._load(uuid, lower, size_bytes, read_only=read_only)
            await self.in_thread(lambda: self._mapper.resume(uuid))
            for info in self._mapper.devices(_NAME_PREFIX + volume_id):
                await wait_for_node(Path(f"/dev/dm-{info.minor}"))
                self._link(volume_id, info)
        except BaseException:
            self._remove(volume_id)
            raise

    async def _grow(self, uuid: str, lower: Lower, size_bytes: int) -> None:
        """A longer table over the same device; whoever makes it live early does no harm."""
        await self._load(uuid, lower, size_bytes)
        try:
            async with self._suspension.suspended(uuid, freeze=False):
                pass  # resuming makes the loaded table live
        except BaseException:
            self._mapper.clear(uuid)
            raise

    async def _load(
        self, uuid: str, lower: Lower, size_bytes: int, *, read_only: bool = False
    ) -> None:
        if lower.size_bytes < size_bytes:
            raise StorageError(
                f"the disk has {lower.size_bytes} bytes, the volume needs {size_bytes}"
            )
        sectors, params = size_bytes // SECTOR_BYTES, f"{lower.number} 0"
        load = partial(self._mapper.load, uuid, sectors, "linear", params, read_only=read_only)
        await self.in_thread(load)

    def _remove(self, volume_id: str) -> None:
        self._mapper.remove(self._uuid(volume_id))
        self._unlink(volume_id)

    def _unlink(self, volume_id: str) -> None:
        with self._effects.around("link remove"):
            self.path(volume_id).unlink(missing_ok=True)

    def _link(self, volume_id: str, info: DeviceInfo) -> None:
        link, target = self.path(volume_id), f"../dm-{info.minor}"
        if _leads_to(link, info):
            return
        with self._effects.around("link make"):
            LINK_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
            fresh = link.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.rename(link)

    def _lock(self, volume_id: str) -> asyncio.Lock:
        """One per front, for as long as anybody holds or awaits it."""
        return self._locks.setdefault(volume_id, asyncio.Lock())

    def _uuid(self, volume_id: str) -> str:
        return self._uuid_prefix + volume_id

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what may wait for I/O without stopping the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _leads_to(link: Path, front: DeviceInfo) -> bool:
    return link.is_symlink() and str(link.readlink()) == f"../dm-{front.minor}"
