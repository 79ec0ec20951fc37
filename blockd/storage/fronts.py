"""Fronts: the devices through which volumes are used.

A front is a dm-linear of exactly the volume's size over its LV, with the uuid
`BLOCKD-<class>-<catalog>-<volume>` and the link `/dev/blockd/<volume>`. It is derived from the
catalog at every start, so it needs no journal. Tried: docs/decisions/0003-fronts.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
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

T = TypeVar("T")
log = structlog.get_logger()

LINK_DIRECTORY = Path("/dev/blockd")
_NAME_PREFIX = "blockd-"


@dataclass(frozen=True, slots=True)
class Lower:
    """What lies under a front: the device `number` (`major:minor`) from its first sector on."""

    number: str
    size_bytes: int


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
        """`owner` is `<class>-<catalog id>`: what tells our fronts from others'."""
        self._mapper, self._watchdog, self._effects = mapper, watchdog, effects
        self._uuid_prefix = f"BLOCKD-{owner}-"
        self._max_suspend_s = max_suspend_s
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Suspending waits for I/O in flight; resuming must never wait for a free thread.
        self._threads = ThreadPoolExecutor(8, "dm")

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

    def number_behind(self, volume_id: str) -> str | None:
        """`major:minor` of the device under the front, None without a front or a table."""
        uuid = self._uuid(volume_id)
        info = self._mapper.info(uuid)
        if info is None or not info.has_table:
            return None
        return self._mapper.table(uuid)[0].params.split()[0]

    def resume_all(self) -> None:
        """Resume what a crash left suspended, and remove what it left without a table."""
        for volume_id, info in self.ours().items():
            if info.suspended:
                log.warning("resuming front left suspended", volume_id=volume_id)
                self._mapper.resume(info.uuid)
            if not info.has_table:
                self._remove(volume_id)

    async def connect(self, volume_id: str, lower: Lower, size_bytes: int) -> None:
        """Make the front, or grow it, or leave it as it is.

        Raises:
            StorageError: it lies over another device, or the kernel refused.
        """
        async with self._lock(volume_id):
            uuid = self._uuid(volume_id)
            info = self._mapper.info(uuid)
            if info is None or not info.has_table:
                await self._make(volume_id, lower, size_bytes)
                return
            (target,) = self._mapper.table(uuid)
            if target.params != f"{lower.number} 0":
                raise StorageError(f"volume {volume_id} has another disk behind its front")
            if target.length_sectors != size_bytes // SECTOR_BYTES:
                await self._load(uuid, lower, size_bytes)
                async with self._suspended(uuid, freeze=False):
                    pass  # resuming makes the loaded table live
            self._link(volume_id, info)

    async def swap(self, volume_id: str, lower: Lower, size_bytes: int) -> None:
        """Put `lower` behind the front.

        The open count is read while the front is suspended: who opens it later cannot have read
        or written a byte before the new table is live, so there is no race to lose.

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
            await self._load(uuid, lower, size_bytes)
            is_open = False
            async with self._suspended(uuid, freeze=False):
                if self.is_open(volume_id):
                    is_open = True
                    self._mapper.clear(uuid)
            if is_open:
                raise InUse(volume_id, "revert")

    async def disconnect(self, volume_id: str) -> None:
        """Remove the front, if there is one.

        Raises:
            InUse: somebody holds it open.
        """
        async with self._lock(volume_id):
            try:
                await self._in_thread(lambda: self._remove(volume_id))
            except DeviceOpen as err:
                raise InUse(volume_id, "delete") from err

    @asynccontextmanager
    async def still(self, volume_id: str) -> AsyncIterator[bool]:
        """The front suspended: no write passes, a file system mounted on it is frozen.

        Yields whether there is a front. Nothing within may wait for a file to be written: the
        daemon's own file system may lie on this front.

        Raises:
            StorageOverdue: it was suspended for longer than allowed, so what was done within may
                have seen writes.
        """
        async with self._lock(volume_id):
            uuid = self._uuid(volume_id)
            if self._mapper.info(uuid) is None:
                yield False
                return
            async with self._suspended(uuid, freeze=True):
                yield True

    @asynccontextmanager
    async def _suspended(self, uuid: str, *, freeze: bool) -> AsyncIterator[None]:
        began = time.monotonic()
        try:
            self._watchdog.tell(f"arm {self._max_suspend_s} {uuid}")
        except OSError as err:
            raise StorageError(f"the front watchdog is gone, nothing is suspended: {err}") from err
        suspending = asyncio.ensure_future(
            self._in_thread(lambda: self._mapper.suspend(uuid, freeze=freeze))
        )
        try:
            await asyncio.shield(suspending)
            yield
        finally:
            # Not to be cancelled: whoever leaves, even while it is being suspended, leaves the
            # front resumed. The watchdog stays armed until then.
            await asyncio.shield(self._resume_after(suspending, uuid))
        suspended_s = time.monotonic() - began
        if suspended_s >= self._max_suspend_s:
            raise StorageOverdue(
                f"the volume was suspended for {suspended_s:.1f} s, longer than max_suspend_s"
            )

    async def _resume_after(self, suspending: asyncio.Future[None], uuid: str) -> None:
        try:
            await suspending
        except StorageError:  # it was not suspended; what was loaded must not come to life later
            self._mapper.clear(uuid)
        else:
            await self._in_thread(lambda: self._mapper.resume(uuid))
        with suppress(OSError):  # the watchdog is gone, but the front is resumed
            self._watchdog.tell(f"disarm {uuid}")

    async def _make(self, volume_id: str, lower: Lower, size_bytes: int) -> None:
        uuid = self._uuid(volume_id)
        if self._mapper.info(uuid) is None:
            self._mapper.create(_NAME_PREFIX + volume_id, uuid)
        try:
            await self._load(uuid, lower, size_bytes)
            await self._in_thread(lambda: self._mapper.resume(uuid))
            for info in self._mapper.devices(_NAME_PREFIX + volume_id):
                await wait_for_node(Path(f"/dev/dm-{info.minor}"))
                self._link(volume_id, info)
        except BaseException:
            self._remove(volume_id)
            raise

    async def _load(self, uuid: str, lower: Lower, size_bytes: int) -> None:
        if lower.size_bytes < size_bytes:
            raise StorageError(
                f"the disk has {lower.size_bytes} bytes, the volume needs {size_bytes}"
            )
        sectors, params = size_bytes // SECTOR_BYTES, f"{lower.number} 0"
        await self._in_thread(lambda: self._mapper.load(uuid, sectors, "linear", params))

    def _remove(self, volume_id: str) -> None:
        self._mapper.remove(self._uuid(volume_id))
        with self._effects.around("link remove"):
            self.path(volume_id).unlink(missing_ok=True)

    def _link(self, volume_id: str, info: DeviceInfo) -> None:
        link, target = self.path(volume_id), f"../dm-{info.minor}"
        if link.is_symlink() and str(link.readlink()) == target:
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

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
