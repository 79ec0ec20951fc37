"""The pool of a thin class: what the kernel and LVM say of it, and its extension."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import structlog

from blockd.domain.errors import StartError, StorageError, StorageOverdue
from blockd.domain.pool import PoolUse
from blockd.storage.dm import DeviceMapper, Target
from blockd.storage.dm_events import dm_events
from blockd.storage.held_root import HeldRoot
from blockd.storage.lvm_commands import LvmCommands
from blockd.storage.lvm_report import LogicalVolume
from blockd.storage.pool_status import PoolStatus, parse_pool_status

log = structlog.get_logger()

_STATUS_DEADLINE_S = 10.0
#: LVM removes the device of a pool when its first volume is made, and makes it under another name.
_ABSENT_S = 2.0
_LOOK_AGAIN_S = 0.02
#: LVM counts a change when it has written down what the kernel is to be told; cut short there, it
#: tells the kernel with its next change (lvm2, lib/metadata/thin_manip.c). If it cannot, the
#: change fails or is put right (thin_collision.py).
_OWED = 1


class ThinPool:
    """One pool. What changes it is called within a turn of the volume group.

    Attributes:
        facts: what LVM said when it was last asked.
        transaction_ids: the kernel's and LVM's, if they differed then.
        uuid: of the kernel's device.
    """

    facts: LogicalVolume

    def __init__(
        self, storage_class: str, name: str, lvm: LvmCommands, mapper: DeviceMapper
    ) -> None:
        self._class, self._name, self._lvm, self._mapper = storage_class, name, lvm, mapper
        self._full_name = f"{lvm.vg}/{name}"
        # Of its own: the kernel answers when the pool's metadata lock is free, and on a disk that
        # hangs it never is.
        self._threads = ThreadPoolExecutor(2, "pool-status")
        self._event = asyncio.Event()
        self._fault = ""
        self.transaction_ids: tuple[int, int] | None = None
        self.uuid = ""

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False)

    async def open(self, lvs: Sequence[LogicalVolume]) -> None:
        """Activate it. A pool that cannot be activated is told of.

        Args:
            lvs: what there is.

        Raises:
            StartError: there is no such pool, or it is not fit.
        """
        facts = self._among(lvs)
        if facts is None or facts.kind != "thin-pool":
            raise StartError(
                f"there is no thin pool {self._full_name}; `blockd make-pool` makes one"
            )
        if not facts.zeroes:
            raise StartError(
                f"pool {self._full_name} does not zero new chunks, so volumes would show old data: "
                f"lvchange --zero y {self._full_name}"
            )
        # How LVM names the device (lvm2, lib/activate/dev_manager.c, build_dm_uuid).
        self.uuid = f"LVM-{f'{facts.vg_uuid}{facts.uuid}'.replace('-', '')}-tpool"
        await self._activate()
        await self._compare(facts)

    async def _activate(self) -> None:
        self._fault = ""
        if self._mapper.info(self.uuid) is None:
            try:
                await self._lvm.activate([self._name])
            except StorageOverdue as err:
                self._fault = str(err)  # it still runs: nothing is known, and nothing begun
            except StorageError as err:
                if self._mapper.info(self.uuid) is None:  # what the kernel has counts
                    self._fault = str(err)
                    await self._activate_as_committed()

    async def _activate_as_committed(self) -> None:
        """What LVM refused may have been caught by a power cut."""
        try:
            if await HeldRoot(self._name, self._lvm, self._mapper).put_back():
                await self._lvm.activate([self._name])
                self._fault = ""
        except StorageError as err:
            log.exception("pool is not put back", pool=self._full_name, reason=str(err))

    async def take_up(self) -> None:
        """Activate it again, after it was taken down.

        Raises:
            StorageError: it was not taken down, or LVM does not activate it.
        """
        if self._mapper.info(self.uuid) is not None:
            raise StorageError(
                f"pool {self._full_name} is still in use: deactivate its other LVs (lvs "
                f"{self._lvm.vg})"
            )
        await self._activate()
        self._event.set()
        if self._fault:
            raise StorageError(f"pool {self._full_name} is not active: {self._fault}")
        await self.look()

    async def look(self) -> None:
        """Ask LVM: one process.

        Raises:
            StorageError: it does not answer, or the pool is gone.
        """
        facts = self._among(await self._lvm.lvs())
        if facts is None:
            raise StorageError(f"LVM knows no pool {self._full_name} any more")
        await self._compare(facts)

    async def learn(self, lvs: Sequence[LogicalVolume]) -> None:
        """LVM was asked for something else: what it said of the pool counts, too."""
        facts = self._among(lvs)
        if facts is not None and facts != self.facts:
            with suppress(StorageError):  # whoever looks at the pool will hear of it
                await self._compare(facts)
            self._event.set()

    def _among(self, lvs: Sequence[LogicalVolume]) -> LogicalVolume | None:
        return next((lv for lv in lvs if lv.name == self._name), None)

    async def _compare(self, facts: LogicalVolume) -> None:
        self.facts, self.transaction_ids = facts, None
        status = await self._status_if_active()
        if status is None or status.mode == "fail":
            return
        if status.transaction_id != facts.transaction_id:
            self.transaction_ids = status.transaction_id, facts.transaction_id

    async def use(self) -> PoolUse:
        """Its size and use: no process."""
        facts = self.facts
        status = await self._status_if_active()
        if status is None:
            status = PoolStatus(0, 0, 0, 0, 0, "inactive", needs_check=False)
        return PoolUse(
            storage_class=self._class,
            name=self._full_name,
            size_bytes=status.data_blocks * facts.chunk_bytes,
            used_bytes=status.data_used_blocks * facts.chunk_bytes,
            metadata_size_bytes=status.metadata_bytes,
            metadata_used_bytes=status.metadata_used_bytes,
            mode=status.mode,
            needs_check=status.needs_check,
            group_free_bytes=facts.group_free_bytes,
            extent_bytes=facts.extent_bytes,
            when_full=status.when_full or None,
            transaction_ids=self._ids_that_stay(status),
            fault=self._fault,
        )

    def _ids_that_stay(self, now: PoolStatus) -> tuple[int, int] | None:
        """Those that differ still, and will until somebody puts them right."""
        if self.transaction_ids is None:
            return None
        kernel, lvm = self.transaction_ids
        return (kernel, lvm) if now.transaction_id == kernel != lvm - _OWED else None

    async def status(self) -> PoolStatus:
        """The kernel's word.

        Raises:
            StorageError: it is not active, or its disk hangs.
        """
        return parse_pool_status((await self.device_status(self.uuid)).params)

    async def _status_if_active(self) -> PoolStatus | None:
        target = await self._target(self.uuid)
        return None if target is None else parse_pool_status(target.params)

    async def device_status(self, uuid: str) -> Target:
        """Of the pool, or of a device in it."""
        target = await self._target(uuid)
        if target is None:
            raise StorageError(
                f"pool {self._full_name} is not active, or a device in it is not: "
                f"lvchange -ay {self._full_name}"
            )
        return target

    async def _target(self, uuid: str) -> Target | None:
        """None: there is no device with a table, and no moment brings one."""
        until = time.monotonic() + _ABSENT_S
        while not (targets := await self._targets(uuid)):
            if time.monotonic() > until:
                return None
            await asyncio.sleep(_LOOK_AGAIN_S)
        return targets[0]

    async def _targets(self, uuid: str) -> list[Target]:
        def ask() -> list[Target]:
            try:
                return self._mapper.status(uuid)
            except StorageError:
                if self._mapper.info(uuid) is None:
                    return []
                raise

        asking = asyncio.get_running_loop().run_in_executor(self._threads, ask)
        try:
            async with asyncio.timeout(_STATUS_DEADLINE_S):
                return await asking
        except TimeoutError:
            raise StorageError(
                f"pool {self._full_name} does not answer: does a disk hang?"
            ) from None

    async def extend(self, size_bytes: int, metadata_bytes: int) -> None:
        """Its data and its metadata to at least so much (0: as they are), in one process.

        Passes when they are as large already; the kernel is then told what LVM knows.

        Raises:
            StorageError: LVM refused, or said that it did and the kernel knows nothing of it.
        """
        extent = self.facts.extent_bytes
        size_bytes = -(-size_bytes // extent) * extent
        metadata_bytes = -(-metadata_bytes // extent) * extent
        try:
            await self._lvm.extend_pool(self._name, size_bytes, metadata_bytes)
        except StorageOverdue:
            raise  # it still runs, and no other command may
        except StorageError:
            await self.look()
            # Refused, too, when an attempt that was cut short came as far as LVM's metadata.
            if self.facts.size_bytes < size_bytes or self.facts.metadata_bytes < metadata_bytes:
                raise
            await self._lvm.refresh(self._name)
        await self.look()
        now = await self.status()
        if (
            now.data_blocks * self.facts.chunk_bytes + self.facts.chunk_bytes <= size_bytes
            or now.metadata_bytes < metadata_bytes
        ):
            raise StorageError(
                f"LVM reported that {self._full_name} has grown, the kernel says it has not"
            )

    # events

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hear of the kernel's events for the length of the block."""
        with dm_events(self._event.set):
            yield

    async def event(self, within_s: float) -> None:
        """Wait until the kernel has raised an event of any device, but no longer than so."""
        try:
            async with asyncio.timeout(within_s):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()
