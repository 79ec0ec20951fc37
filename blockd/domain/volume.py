"""A volume, and what can be asked of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from blockd.domain.guest import Attachment
from blockd.domain.states import Status

#: The API's volume types by their performance (wire.md, b); None: a thick class, which has none.
TYPE_OF_IOPS: Final[Mapping[int | None, str]] = {5000: "sbs_5k", 15000: "sbs_15k", None: "b_ssd"}
PERF_IOPS: Final = tuple(iops for iops in TYPE_OF_IOPS if iops is not None)
DEFAULT_PERF_IOPS: Final = 5000


@dataclass(frozen=True, slots=True)
class Volume:
    """One row of the catalog. `disk` is the name of the LV that holds its bytes now.

    Instants are API timestamps (`units.now_timestamp`). `error` says why `status` is `error`,
    or why the last change did not come about. `deleted_at` is set while in the trash.
    `perf_iops` is None in a thick class. `attachments` are rows of their own.
    """

    id: str
    project_id: str
    name: str
    size_bytes: int
    perf_iops: int | None
    storage_class: str
    status: Status
    tags: tuple[str, ...]
    parent_snapshot_id: str | None
    disk: str
    created_at: str
    updated_at: str
    last_detached_at: str | None = None
    deleted_at: str | None = None
    error: str | None = None
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A checked request for a volume; `size_bytes` None means the snapshot's size.

    Attributes:
        name: None asks for a generated one (`vol-…`).
        project_id: None means the host's default project.
        perf_iops: a thick class has none, and takes no notice.
        storage_class: None means the configured default, or the snapshot's class.
    """

    name: str | None
    project_id: str | None
    size_bytes: int | None
    perf_iops: int
    tags: tuple[str, ...]
    storage_class: str | None
    snapshot_id: str | None


@dataclass(frozen=True, slots=True)
class VolumeChange:
    """A checked PATCH; None leaves the field as it is."""

    name: str | None = None
    tags: tuple[str, ...] | None = None
    size_bytes: int | None = None
    perf_iops: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """Where a volume's bytes are used: a stable path, and exactly `size_bytes` of them."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A disk that blockd itself reads or writes: a path to open, and how many bytes are there.

    `size_bytes` is the disk's own, in whole extents: at least the volume's.
    """

    path: str
    size_bytes: int
