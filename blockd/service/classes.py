"""The storage classes of this host, and whether there is room in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockd.catalog import Transaction
from blockd.domain.errors import InvalidArguments, NoRoom, PoolUnfit
from blockd.domain.pool import PoolUse
from blockd.domain.units import format_size
from blockd.service.ports import StorageDriver


@dataclass(frozen=True, slots=True)
class StorageClass:
    """One class: its driver and the bounds it was given in the configuration.

    Attributes:
        overcommit: the sum of the volumes' sizes may be this many times the pool's.
        high_water_percent: nothing new is made in a pool that is used beyond this.
    """

    name: str
    driver: StorageDriver
    overcommit: float
    high_water_percent: float

    async def check_pool(self, resource: str) -> PoolUse:
        """The pool's use, before anything of kind `resource` is made in it.

        Raises:
            NoRoom: data or metadata stand above the high-water mark.
            PoolUnfit: the pool takes no writes.
        """
        pool = await self.driver.pool()
        if pool.mode not in ("rw", "out_of_data_space"):
            raise PoolUnfit(
                resource,
                pool.size_bytes,
                pool.used_bytes,
                f"pool {pool.name} is {pool.mode} and takes no writes: repair it",
            )
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
        return pool

    def check_overcommit(self, tx: Transaction, pool: PoolUse, more_bytes: int) -> None:
        """Whether the class may promise `more_bytes`; exact, as it is part of the transaction.

        Raises:
            NoRoom: the sum of all volumes' sizes would pass `overcommit` times the pool.
        """
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
