"""A snapshot, and what can be asked of one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from blockd.domain.guest import Attachment
from blockd.domain.job import JobKind
from blockd.domain.states import Status
from blockd.domain.volume import Volume


@dataclass(frozen=True, slots=True)
class ParentVolume:
    """The volume a snapshot was taken of, as it is now (live name and status)."""

    id: str
    name: str
    perf_iops: int | None
    status: Status
    is_attached: bool = False

    @classmethod
    def of(cls, volume: Volume) -> ParentVolume:
        """The volume as its snapshots show it."""
        attached = bool(volume.attachments)
        return cls(volume.id, volume.name, volume.perf_iops, volume.status, attached)


class Consistency(StrEnum):
    """What a snapshot's bytes are fit for."""

    #: As after a power cut at its instant.
    CRASH = "crash"
    #: The guest's file systems had written all they held back.
    FILESYSTEM = "filesystem"


class Quiesce(StrEnum):
    """Whether the guest is to be quiet at a snapshot's instant."""

    AUTO = "auto"
    REQUIRE = "require"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One row of the catalog. `disk` is the LV with its bytes; `parent` is null when it is gone.

    Attributes:
        content_digest: known once it was exported or imported (`transfer/digest.py`).
        origin_disk: the disk without which this one cannot be read; None: it needs none.
        consistency: None: nobody noted it.
        frozen_ms: for how long guests were frozen for it; None: none was.
        held_by: the work under way that needs its disk: a clone's copy, a revert's merge.
        group_id: what it was taken together with, and `suspended_ms` for how long their volumes
            stood still for it. Both are known of a snapshot that is asked for alone, not in lists.
        attachments: the guests that read it; rows of their own.
    """

    id: str
    project_id: str
    name: str
    size_bytes: int
    storage_class: str
    status: Status
    public: bool
    tags: tuple[str, ...]
    volume_id: str | None
    parent: ParentVolume | None
    disk: str
    created_at: str
    updated_at: str
    deleted_at: str | None = None
    error: str | None = None
    content_digest: str | None = None
    origin_disk: str | None = None
    consistency: Consistency | None = None
    frozen_ms: int | None = None
    held_by: JobKind | None = None
    group_id: str | None = None
    suspended_ms: int | None = None
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A checked request for a snapshot; name and project None mean generated and default."""

    volume_id: str
    name: str | None
    project_id: str | None
    tags: tuple[str, ...]
    public: bool
    quiesce: Quiesce = Quiesce.AUTO


@dataclass(frozen=True, slots=True)
class SnapshotChange:
    """A checked PATCH; None leaves the field as it is."""

    name: str | None = None
    tags: tuple[str, ...] | None = None
    public: bool | None = None
