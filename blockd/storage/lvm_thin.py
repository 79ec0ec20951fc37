"""The class `sbs`: thin LVs of one pool. Implements `service.ports.StorageDriver`.

One LVM process per change, none per read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from blockd.domain.allocation import Allocation
from blockd.domain.backup import THIN_METADATA, VG_TEXT, MetadataPart, whole
from blockd.domain.errors import InUse, PreconditionFailed, StartError, StorageError
from blockd.domain.finding import Finding
from blockd.domain.front import FrontSpec
from blockd.domain.group import Picture
from blockd.domain.pool import PoolUse
from blockd.storage.dm import DeviceMapper
from blockd.storage.fronts import Fronts
from blockd.storage.instant import InstantDisks
from blockd.storage.lvm_commands import LvmCommands, LvmFailed
from blockd.storage.lvm_disks import ClassSettings, Surroundings, wired
from blockd.storage.lvm_groups import LvmGroups
from blockd.storage.lvm_report import LogicalVolume
from blockd.storage.thin_collision import ThinCollision
from blockd.storage.thin_examination import ThinExamination
from blockd.storage.thin_pool import ThinPool
from blockd.storage.thin_reading import ThinReading
from blockd.storage.vg_queue import VgQueue

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinSettings(ClassSettings):
    """And in which pool of the volume group."""

    pool: str


class LvmThin(InstantDisks, LvmGroups):
    """See the port for what each method promises."""

    _reading: ThinReading

    def __init__(
        self,
        settings: ThinSettings,
        catalog_id: str,
        lvm: LvmCommands,
        fronts: Fronts,
        mapper: DeviceMapper,
        queue: VgQueue,
    ) -> None:
        super().__init__(settings, catalog_id, lvm, fronts, mapper, queue)
        self._settings = settings
        self._reading = ThinReading(
            settings.vg, settings.pool, lvm, mapper, queue.turn, self._lower, self._amiss.set
        )
        self._pool = ThinPool(settings.name, settings.pool, lvm, mapper)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hear of the pool's events for the length of the block."""
        try:
            with self._pool.watching():
                yield
        finally:
            self._pool.close()

    # disks

    async def create(self, disk: str, size_bytes: int) -> None:
        async def make() -> None:
            await self._lvm.create_thin(disk, self._settings.pool, size_bytes, self._tag)
            await self._expect_empty(disk)

        await self._make(disk, make)

    async def _expect_empty(self, disk: str) -> None:
        """LVM takes a thin device that the kernel has already for the one that it just made.

        (lvm2, libdm/libdm-deptree.c, `expected_errno = EEXIST`): its old data would show.
        """
        info = self._info(disk)
        if info is None:
            raise StorageError(f"LV {self._vg}/{disk} has no device after its creation")
        target = await self._pool.device_status(info.uuid)
        if target.params.split()[:1] != ["0"]:  # mapped sectors (thin-provisioning.rst)
            kept_id = await self._collision.keep(self._reading.device_id(disk))
            raise StorageError(
                f"LVM made {disk} of a thin device with old data, which is kept as number {kept_id}"
            )

    async def snapshot(self, snapshot_disk: str, disk: str, volume_id: str | None) -> None:
        async def take() -> None:
            async with self.still([] if volume_id is None else [volume_id]):
                await self._take([(snapshot_disk, disk)])

        await self._make(snapshot_disk, take)

    @asynccontextmanager
    async def taking(
        self, pictures: Sequence[Picture]
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """See the port."""
        pairs = [(picture.disk, picture.of_disk) for picture in pictures]
        yield partial(self._take, pairs)

    async def _take(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Make these snapshots, each of its origin.

        LVM may say that it made a snapshot when the kernel made none: compare its count. Seen when
        an origin was suspended by somebody else (docs/decisions/0003-fronts.md).
        """
        before = (await self._pool.status()).transaction_id
        await self._lvm.snapshot_thin(pairs, self._tag, timeout_s=self._settings.max_suspend_s)
        after = (await self._pool.status()).transaction_id
        if after != before + len(pairs):
            made = ", ".join(snapshot_disk for snapshot_disk, _ in pairs)
            raise StorageError(
                f"LVM reported snapshot {made}, but the pool's transaction id went from "
                f"{before} to {after}: run `lvs` and `dmsetup status` on {self._settings.vg}"
            )

    async def clone(self, disk: str, snapshot_disk: str, size_bytes: int) -> None:
        await self._make(disk, lambda: self._lvm.clone_thin(disk, snapshot_disk, self._tag))
        await self.grow(disk, size_bytes)

    async def grow(self, disk: str, size_bytes: int) -> None:
        if (await self._lower(disk)).size_bytes >= size_bytes:
            return
        try:
            await self._lvm.extend(disk, size_bytes)
        except LvmFailed:
            # Refused, too, when an attempt that was cut short came as far as the metadata.
            found = await self._found(disk)
            if found is None or found.size_bytes < size_bytes:
                raise
            await self._lvm.refresh(disk)
        if (await self._lower(disk)).size_bytes < size_bytes:
            raise StorageError(f"LVM reported that {disk} has grown, the kernel says it has not")

    async def erase(self, disks: Sequence[str]) -> None:
        if disks:
            await self._collision.remove(disks)

    async def _remove_remains(self, remains: LogicalVolume) -> None:
        await self._collision.remove([remains.name])

    # reading and writing them ourselves

    async def allocation(self, disk: str, size_bytes: int) -> Allocation | None:
        return await self._reading.allocation(disk, size_bytes, self._pool.uuid)

    @asynccontextmanager
    async def metadata(self) -> AsyncIterator[Sequence[MetadataPart]]:
        """See the port. In one turn, so that both have the same transaction id."""
        async with AsyncExitStack() as stack:
            while not (parts := await self._begin_metadata(stack)):
                async with self._reading.alone():  # not within a turn: others go on
                    pass
            yield parts

    async def _begin_metadata(self, stack: AsyncExitStack) -> list[MetadataPart]:
        """Nothing while somebody reads the metadata: no turn is held until they have ended.

        The order is turn, then metadata snapshot, as whoever examines the pool has it.
        """
        failed: StorageError | None = None
        data_blocks = 0
        async with self.turn():
            if self._reading.is_asking:
                return []
            await stack.enter_async_context(self._reading.alone())
            text = await self._lvm.text()
            try:
                await stack.enter_async_context(self._reading.reserved(self._pool.uuid))
                data_blocks = (await self._pool.status()).data_blocks
            except StorageError as err:
                failed = err
        thin = self._mappings(failed, data_blocks)
        return [MetadataPart(VG_TEXT, whole(text)), MetadataPart(THIN_METADATA, thin)]

    async def _mappings(
        self, failed: StorageError | None, data_blocks: int
    ) -> AsyncGenerator[bytes, None]:
        if failed is not None:
            raise failed
        async with aclosing(self._reading.dump(data_blocks)) as pieces:
            async for piece in pieces:
                yield piece

    # examination

    async def _examine_space(
        self, lvs: Sequence[LogicalVolume], ours: frozenset[str]
    ) -> list[Finding]:
        return await self._examination.find(lvs, ours)

    async def _mend_space(self, finding: Finding) -> None:
        await self._examination.mend(finding)

    # the pool

    async def _lvs(self) -> list[LogicalVolume]:
        lvs = await super()._lvs()
        await self._pool.learn(lvs)
        return lvs

    async def pool(self) -> PoolUse:
        return await self._pool.use()

    async def recount(self) -> None:
        async with self._queue.turn(urgent=True):
            await self._pool.look()

    async def extend_pool(self, size_bytes: int, metadata_bytes: int) -> None:
        async with self._queue.turn(urgent=True):
            await self._pool.extend(size_bytes, metadata_bytes)

    async def repair_pool(self) -> None:
        """See the port."""
        fronts = self._fronts.ours()
        for volume_id, info in fronts.items():
            if info.open_count:
                raise _held(volume_id)
        try:
            for volume_id in fronts:
                try:
                    await self.disconnect(volume_id)
                except InUse as err:
                    raise _held(volume_id) from err
            active = [disk for disk in await self.disks() if self._active(disk) is not None]
            await self._lvm.deactivate([*active, self._settings.pool])
            await self._pool.take_up()
        finally:
            self._amiss.set()

    async def pool_event(self, within_s: float) -> None:
        await self._pool.event(within_s)

    # start

    async def open(self) -> None:
        """Look at what there is, and activate the pool.

        Raises:
            StartError: there is no such volume group or pool, or the pool is not fit. One that
                cannot be activated is told of by `pool`.
        """
        vg = self._settings.vg
        try:
            lvs = await self._lvm.lvs()
        except LvmFailed as err:
            raise StartError(
                f"volume group {vg}: {err}; `blockd make-pool` makes volume group and pool"
            ) from err
        await self._pool.open(lvs)
        self.vg_uuid, self._at_open = self._pool.facts.vg_uuid, lvs
        self._collision = ThinCollision(
            self._settings.pool,
            self._pool.uuid,
            self._tag,
            self._lvm,
            self._mapper,
            self._pool.status,
        )
        self._lvm.clear_way = self._collision.clear_way
        pool = self._settings.pool
        self._private_lvs = (pool, f"{pool}_tdata", f"{pool}_tmeta")
        self._examination = ThinExamination(
            vg, pool, self._pool.uuid, self._reading, self._collision, self._pool.status
        )
        if self._pool.transaction_ids is not None:
            await self._undo_cut_short()

    async def _undo_cut_short(self) -> None:
        """At start: the journal does anew what LVM was making when it was cut short."""
        try:
            self._at_open = None
            if not await self._collision.undo_cut_short():
                await self._collision.finish_removal()
            await self._pool.look()
        except StorageError as err:  # whoever changes something will hear of it
            log.exception("an LVM command cut short is not undone", reason=str(err))

    async def start(self, fronts: Sequence[FrontSpec], hidden: Sequence[str] = ()) -> list[str]:
        del hidden  # thin snapshots need no origin
        problems = await self._release_leftover()
        problems += await self._start_fronts(fronts, ())
        return problems + await self._put_away_left()

    async def _release_leftover(self) -> list[str]:
        """What a crash left of the pool's metadata being read."""
        try:
            if (await self._pool.status()).holds_snapshot:
                await self._reading.release_leftover(self._pool.uuid)
        except StorageError as err:
            return [str(err)]
        return []


def _held(volume_id: str) -> PreconditionFailed:
    return PreconditionFailed(
        "resource_still_in_use",
        f"/dev/blockd/{volume_id} is in use: unmount or detach it before its pool is repaired",
    )


@asynccontextmanager
async def open_lvm_thin(settings: ThinSettings, around: Surroundings) -> AsyncIterator[LvmThin]:
    """The driver.

    Raises:
        StartError: something is missing, or not fit.
    """
    with wired(settings, around) as (lvm, fronts, queue):
        driver = LvmThin(settings, around.catalog_id, lvm, fronts, around.mapper, queue)
        with driver.watching():
            await driver.open()
            async with driver.watching_disks():
                yield driver
