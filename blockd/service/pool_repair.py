"""Repairing a pool where nothing can be lost by it: LVM checks its metadata, and takes it up again.

What LVM then refuses needs a person, who has docs/pool-trouble.md.
"""

from __future__ import annotations

from blockd.domain.errors import NotFound, PreconditionFailed, StorageError
from blockd.domain.pool_state import PoolState
from blockd.domain.pool_trouble import trouble_line
from blockd.service.backups import Backups
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.pool_guard import PoolGuard


class PoolRepair:
    """For all classes."""

    def __init__(self, classes: StorageClasses, guard: PoolGuard, backups: Backups) -> None:
        self._classes, self._guard, self._backups = classes, guard, backups

    async def repair(self, class_name: str) -> PoolState:
        """Save what is known, take the pool down and up again; how it does then.

        Volumes cannot be used meanwhile, so nobody may hold one open. Their fronts are back a
        moment after this returns.

        Raises:
            NotFound: there is no such class.
            PreconditionFailed: the pool is well, or its trouble is none that this ends; a volume is
                in use; LVM refuses, or takes too long, and why.
            BackupFailed: not even the volume group's text can be saved; nothing was done.
        """
        storage_class = self._named(class_name)
        use = await storage_class.driver.pool()
        if use.trouble is None:
            raise PreconditionFailed(
                "resource_not_usable", f"{trouble_line(use)}: there is nothing to repair"
            )
        if not use.trouble.is_repairable:
            raise PreconditionFailed("resource_not_usable", trouble_line(use))
        await self._backups.before_repair(class_name)
        async with storage_class.turn_soon():
            try:
                await storage_class.driver.repair_pool()
            except StorageError as err:
                raise PreconditionFailed(
                    "resource_not_usable",
                    f"pool {use.name} is not repaired: {err}; see docs/pool-trouble.md",
                ) from err
        return await self._guard.state(storage_class)

    def _named(self, class_name: str) -> StorageClass:
        for storage_class in self._classes:
            if storage_class.name == class_name:
                return storage_class
        raise NotFound("pool", class_name)
