"""The storage classes of this host, and whether there is room in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from blockd.catalog import Transaction
from blockd.domain.errors import (
    InvalidArguments,
    NoRoom,
    PoolUnfit,
    PreconditionFailed,
    StorageBusy,
)
from blockd.domain.pool import PoolTrouble, PoolUse
from blockd.domain.pool_growth import GrowthBounds
from blockd.domain.pool_trouble import trouble_line
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import DELETED, ERROR
from blockd.domain.units import format_size
from blockd.domain.volume import Volume
from blockd.service.ports import StorageDriver


@dataclass(slots=True)
class StorageClass:
    """One class: its driver and the bounds it was given in the configuration.

    Attributes:
        overcommit: thin: the sum of the volumes' sizes may be this many times the pool's.
        high_water_percent: thin: nothing new is made in a pool that is used beyond this.
        bounds: thin: when and how far the pool is extended.
        promised: thick: bytes that requests were promised and storage has not handed out yet, by
            the id of what they are for.
        patience_s: a request waits no longer for its turn.
        missing: disks that are not there, though nobody here removed them: `Upkeep` says so.
        deleting: ids of volumes whose front is removed, and whose row does not say so yet.
    """

    name: str
    driver: StorageDriver
    overcommit: float = 10.0
    high_water_percent: float = 95.0
    bounds: GrowthBounds = field(default_factory=GrowthBounds)
    promised: dict[str, int] = field(default_factory=dict)
    patience_s: float = 30.0
    missing: frozenset[str] = frozenset()
    deleting: set[str] = field(default_factory=set)

    @property
    def is_thick(self) -> bool:
        """Whether its bytes take as long as the disk takes, and its snapshots need their origin."""
        return self.driver.traits.is_thick

    def why_missing(self, disk: str) -> str | None:
        """What has become of a disk that is gone behind our back; None as a rule."""
        if disk not in self.missing:
            return None
        return (
            f"its LV {disk} is gone: somebody removed or renamed it; give it its name again, or "
            "delete this"
        )

    @asynccontextmanager
    async def turn_soon(
        self, patience_s: float | None = None, *, holds_another: bool = False
    ) -> AsyncIterator[None]:
        """A turn for a request that waits for it: not for ever; else for `self.patience_s`.

        `holds_another`: see `StorageDriver.turn`.

        Raises:
            StorageBusy: it did not come in time.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(patience_s or self.patience_s):
                    await stack.enter_async_context(self.driver.turn(holds_another=holds_another))
            except TimeoutError:
                why = next(iter(self.driver.problems()), "other changes are under way")
                raise StorageBusy(f"class {self.name} is busy: {why}") from None
            yield

    async def check_pool(self, resource: str, needs_bytes: int = 0) -> PoolUse:
        """The pool's use, before anything of kind `resource` is made in it.

        Args:
            needs_bytes: thick: what is taken at once.

        Raises:
            NoRoom: data or metadata stand above the high-water mark; thick: too little is free.
            PoolUnfit: the pool takes no writes, or LVM cannot change it.
        """
        pool = await self.driver.pool()
        if pool.trouble not in (None, PoolTrouble.OUT_OF_DATA_SPACE):
            raise PoolUnfit(resource, pool.size_bytes, pool.used_bytes, trouble_line(pool))
        if pool.free_bytes is None:
            self._check_marks(pool, resource)
        else:
            self._check_free(pool, pool.free_bytes, resource, needs_bytes)
        return pool

    async def lacks(self, needs_bytes: int) -> int:
        """Thick: how many bytes more would have to be free for `needs_bytes`; thin 0."""
        pool = await self.driver.pool()
        return 0 if pool.free_bytes is None else needs_bytes - self._room(pool.free_bytes)

    def _room(self, free_bytes: int) -> int:
        return free_bytes - self.driver.traits.reserve_bytes - sum(self.promised.values())

    def _check_free(self, pool: PoolUse, free_bytes: int, resource: str, needs_bytes: int) -> None:
        if needs_bytes <= self._room(free_bytes):
            return
        reserve, promised = self.driver.traits.reserve_bytes, sum(self.promised.values())
        kept = [f"{format_size(reserve)} are the reserve"] if reserve else []
        kept += [f"{format_size(promised)} are promised"] if promised else []
        raise NoRoom(
            resource,
            max(pool.size_bytes - reserve, 0),
            pool.used_bytes + promised,
            f"{pool.name}: {format_size(needs_bytes)} are needed, {format_size(free_bytes)} of "
            f"{format_size(pool.size_bytes)} are free{''.join(f', {text}' for text in kept)}: "
            "delete volumes or snapshots, or extend the volume group",
        )

    def is_above_high_water(self, pool: PoolUse) -> bool:
        """Thin: whether nothing new may be made for want of room."""
        try:
            self._check_marks(pool, "volume")
        except NoRoom:
            return True
        return False

    def _check_marks(self, pool: PoolUse, resource: str) -> None:
        for what, used, size in (
            ("data", pool.used_bytes, pool.size_bytes),
            ("metadata", pool.metadata_used_bytes, pool.metadata_size_bytes),
        ):
            limit = int(size * self.high_water_percent / 100)
            if used >= limit:
                raise NoRoom(
                    resource,
                    limit,
                    used,
                    f"pool {pool.name}: {format_size(used)} of {format_size(size)} {what} used, "
                    f"nothing new above {self.high_water_percent:g} %: "
                    "delete volumes or snapshots, or extend the pool",
                )

    def surplus_snapshots(
        self, tx: Transaction, volume: Volume, spare: int = 0, *, gives_way: bool = True
    ) -> int:
        """How many snapshots in the trash must go before one more is taken of the volume.

        Part of the transaction.

        Args:
            spare: how many more than the limit there may be.
            gives_way: whether the trash does.

        Raises:
            NoRoom: thick: there are as many as the class allows of one origin.
        """
        most = self.driver.traits.max_snapshots
        if most is None:
            return 0
        count = tx.disks.snapshots_of(volume.disk)
        surplus = max(count + 1 - most - spare, 0)
        if surplus > (len(tx.disks.in_trash_of(volume.disk)) if gives_way else 0):
            raise NoRoom(
                "snapshot",
                most,
                count,
                f"volume {volume.id} has {count} snapshots, those in the trash included, and class "
                f"{self.name} allows {most} of one volume, as each makes its writes slower: delete "
                "one, or raise max_snapshots",
            )
        return surplus

    def check_overcommit(self, tx: Transaction, pool: PoolUse, more_bytes: int) -> None:
        """Whether the class may promise `more_bytes`; exact, as it is part of the transaction.

        Raises:
            NoRoom: thin: the sum of all volumes' sizes would pass `overcommit` times the pool.
        """
        if self.is_thick:
            return  # never promises what it has not got
        limit = int(pool.size_bytes * self.overcommit)
        promised = tx.provisioned_bytes(self.name)
        if promised + more_bytes > limit:
            raise NoRoom(
                "volume",
                limit,
                promised,
                f"pool {pool.name}: {format_size(promised)} are promised, "
                f"{format_size(more_bytes)} more would exceed {self.overcommit:g} times its "
                f"{format_size(pool.size_bytes)}: delete volumes, or extend the pool",
            )


class StorageClasses:
    """All classes by name; the first one of the configuration is the default."""

    def __init__(self, classes: Mapping[str, StorageClass], default: str) -> None:
        self._classes, self.default = dict(classes), default

    def __iter__(self) -> Iterator[StorageClass]:
        return iter(self._classes.values())

    def __getitem__(self, name: str) -> StorageClass:
        return self._classes[name]

    def missing(self) -> tuple[frozenset[str], ...]:
        """What is missing in each class: whoever shows rows compares it."""
        return tuple(storage_class.missing for storage_class in self)

    def why_missing(self, row: Volume | Snapshot) -> str | None:
        """Why a row that seems whole has no bytes; None as a rule."""
        if row.error is not None and row.status in (ERROR, DELETED):
            return None
        return self._classes[row.storage_class].why_missing(row.disk)

    def check_there(self, row: Volume | Snapshot) -> None:
        """Before anything is done with its bytes.

        Raises:
            PreconditionFailed: its disk is gone behind our back.
        """
        if (why := self.why_missing(row)) is not None:
            kind = "volume" if isinstance(row, Volume) else "snapshot"
            raise PreconditionFailed("resource_not_usable", f"{kind} {row.id}: {why}")

    def is_open(self, class_name: str, volume_id: str) -> bool:
        """Whether anybody holds a volume's front open: one ioctl."""
        return self._classes[class_name].driver.is_open(volume_id)

    def asked(self, name: str | None) -> StorageClass:
        """The class a request names, or the default.

        Raises:
            InvalidArguments: there is no such class.
        """
        try:
            return self._classes[name or self.default]
        except KeyError:
            known = ", ".join(sorted(self._classes))
            raise InvalidArguments.one(
                "class", "constraint", f"class must be one of: {known}"
            ) from None
