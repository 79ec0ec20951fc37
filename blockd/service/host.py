"""The host itself: whose it is, its pools, and how it is doing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockd import __version__
from blockd.catalog import Catalog
from blockd.domain.errors import CatalogUnavailable, PermissionDenied, StorageError
from blockd.domain.finding import FindingKind
from blockd.domain.pool_state import PoolState
from blockd.domain.volume import TYPE_OF_IOPS
from blockd.service.catalog_copies import CopyState
from blockd.service.classes import StorageClasses
from blockd.service.doctor import Doctor
from blockd.service.jobs import Jobs
from blockd.service.operations import Operations
from blockd.service.pool_guard import PoolGuard
from blockd.service.upkeep import Upkeep

#: Of the first three health tells as they are at this moment, and not as the doctor saw them last.
#: What did not answer the doctor is nothing wrong that was seen, and passes without the doctor.
_NOT_AS_SEEN = (
    FindingKind.OPERATION_STUCK,
    FindingKind.JOB_STUCK,
    FindingKind.DISK_MISSING,
    FindingKind.NOT_EXAMINED,
)


@dataclass(frozen=True, slots=True)
class Health:
    """How blockd is doing; `problems` are lines for people, empty when `status` is `ok`.

    `catalog_copies` has one for each class, none where none is kept.
    """

    status: str
    version: str
    zone: str
    pools: list[PoolState]
    queued: int
    problems: list[str]
    catalog_copies: list[CopyState]


@dataclass(frozen=True, slots=True)
class VolumeType:
    """A type that volumes can have, e.g. `sbs_5k`."""

    type: str
    storage_class: str
    perf_iops: int | None


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Zone, organization and projects that this host serves."""

    zone: str
    organization_id: str
    default_project_id: str
    project_ids: frozenset[str]

    def project(self, asked: str | None, resource: str) -> str:
        """The project a new resource belongs to.

        Raises:
            PermissionDenied: there is no such project here.
        """
        project_id = asked or self.default_project_id
        if project_id not in self.project_ids:
            raise PermissionDenied(resource, "write")
        return project_id


@dataclass(frozen=True, slots=True)
class Beside:
    """What runs beside the verbs, and may have something to tell.

    Attributes:
        copies: tells how the catalog's copies are.
        restored: what there is to know since this start restored it, a line each.
        backups: tells what is wrong with the backups of metadata, a line each.
        guests: tells what is wrong with libvirt and its guests, a line each.
    """

    copies: Callable[[], list[CopyState]] = list
    restored: Sequence[str] = ()
    backups: Callable[[], list[str]] = list
    guests: Callable[[], list[str]] = list


class Host:
    """Questions about the host."""

    def __init__(
        self,
        tenancy: Tenancy,
        catalog: Catalog,
        classes: StorageClasses,
        operations: Operations,
        jobs: Jobs,
        guard: PoolGuard,
        upkeep: Upkeep,
        doctor: Doctor,
        beside: Beside,
    ) -> None:
        """Who asks, and whom to ask."""
        self._catalog = catalog
        self._classes, self._operations, self._jobs = classes, operations, jobs
        self._guard, self._upkeep, self._doctor = guard, upkeep, doctor
        self._beside = beside
        self.zone = tenancy.zone
        self.organization_id = tenancy.organization_id
        self.default_project_id = tenancy.default_project_id

    async def pools(self) -> list[PoolState]:
        """Size, use and prospects of each class's pool.

        Raises:
            StorageError: the kernel does not know a pool.
        """
        return [await self._guard.state(storage_class) for storage_class in self._classes]

    async def health(self) -> Health:
        """What there is to know at a glance; never fails."""
        pools, problems = [], [] if self._catalog.trouble is None else [self._catalog.trouble]
        problems += [
            *self._beside.restored,
            *self._beside.backups(),
            *self._beside.guests(),
            *self._operations.retries.problems.values(),
            *self._jobs.retries.problems.values(),
        ]
        for storage_class in self._classes:
            problems += await self._upkeep.lines(storage_class)
            problems += storage_class.driver.problems()
            try:
                pool = await self._guard.state(storage_class)
            except StorageError as err:
                problems.append(str(err))
                continue
            pools.append(pool)
            problems += pool.problems
        copies = self._beside.copies()
        for copy in copies:
            if copy.problem is not None:
                problems.append(f"class {copy.storage_class}: copy of the catalog: {copy.problem}")
        if self._doctor.last is not None:
            for finding in self._doctor.last.findings:
                if finding.kind not in _NOT_AS_SEEN:
                    problems.append(f"{finding.explanation} (blockctl doctor)")
        queued = 0
        try:
            queued = await self._operations.under_way() + await self._jobs.under_way()
        except CatalogUnavailable as err:
            problems.append(str(err))
        status = "degraded" if problems else "ok"
        return Health(status, __version__, self.zone, pools, queued, problems, copies)

    def volume_types(self) -> list[VolumeType]:
        """The types that can be asked for, by name."""
        types = [
            VolumeType(type_, storage_class.name, iops)
            for storage_class in self._classes
            for iops, type_ in TYPE_OF_IOPS.items()
            if (iops is None) is storage_class.is_thick
        ]
        return sorted(types, key=lambda item: (item.type, item.storage_class))
