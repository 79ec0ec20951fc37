"""The shapes of answers, for the API's document and for the tests that hold `render.py` to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from blockd.api.scalars import Uuid
from blockd.domain.finding import FindingKind
from blockd.domain.pool import PoolTrouble
from blockd.domain.snapshot import Consistency
from blockd.domain.states import Status

#: UTC, six decimals, `Z`.
Instant = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
VolumeTypeName = Literal["sbs_5k", "sbs_15k", "b_ssd"]


class Answer(BaseModel):
    """Every key is always there, and no other is."""

    # Built when the document is first asked for: nobody waits for it at a start.
    model_config = ConfigDict(extra="forbid", defer_build=True)


class Reference(Answer):
    """Who uses it."""

    id: Uuid
    product_resource_type: str
    product_resource_id: str
    created_at: Instant
    type: Literal["exclusive", "link", "unknown_type"]
    status: Literal["creating", "attaching", "attached", "detaching", "error"]


class Specs(Answer):
    """What a volume's class and performance are."""

    storage_class: str = Field(alias="class")
    perf_iops: int | None


class VolumeV1Alpha1(Answer):
    """A volume; `size` in bytes."""

    id: Uuid
    name: str
    type: VolumeTypeName
    size: int
    project_id: Uuid
    created_at: Instant
    updated_at: Instant
    references: list[Reference]
    parent_snapshot_id: Uuid | None
    status: Status
    tags: list[str]
    zone: str
    specs: Specs
    last_detached_at: Instant | None


class Volume(VolumeV1Alpha1):
    """A volume; `size` in bytes."""

    kms_key_id: None


class AttachedTo(Answer):
    """A guest that has it; `target` is the disk's name in the guest's definition."""

    reference_id: Uuid
    uri: str
    domain_id: Uuid
    domain: str
    target: str | None


class HostVolume(Volume):
    """A volume, with what only this host's operator needs to know."""

    error: str | None
    deleted_at: Instant | None
    attachments: list[AttachedTo]


class ParentVolume(Answer):
    """The volume a snapshot was taken of, as it is now."""

    id: Uuid
    name: str
    type: VolumeTypeName
    status: Status


class SnapshotV1Alpha1(Answer):
    """A snapshot; `size` in bytes."""

    id: Uuid
    name: str
    size: int
    project_id: Uuid
    created_at: Instant
    updated_at: Instant
    references: list[Reference]
    status: Status
    parent_volume: ParentVolume | None
    tags: list[str]
    zone: str
    storage_class: str = Field(alias="class")


class Snapshot(SnapshotV1Alpha1):
    """A snapshot; `size` in bytes."""

    public: bool


class HostSnapshot(Snapshot):
    """A snapshot, with what only this host's operator needs to know."""

    error: str | None
    deleted_at: Instant | None
    content_digest: str | None
    consistency: Consistency | None
    frozen_ms: int | None
    group_id: Uuid | None
    suspended_ms: int | None
    attachments: list[AttachedTo]


class Group(Answer):
    """Snapshots of several volumes at one instant, in the order in which these were named.

    For so long the volumes stood still; null: they are not taken yet, and `creating`.
    """

    id: Uuid
    snapshots: list[HostSnapshot]
    suspended_ms: int | None


class VolumeType(Answer):
    """A type of volume; nothing costs money here."""

    type: VolumeTypeName
    pricing: None
    snapshot_pricing: None
    specs: Specs
    zone: str


class ListOfAnswers(Answer):
    """A page, and how many match in all."""

    total_count: int


class VolumesV1Alpha1(ListOfAnswers):
    """A page of volumes."""

    volumes: list[VolumeV1Alpha1]


class Volumes(ListOfAnswers):
    """A page of volumes."""

    volumes: list[Volume]


class SnapshotsV1Alpha1(ListOfAnswers):
    """A page of snapshots."""

    snapshots: list[SnapshotV1Alpha1]


class Snapshots(ListOfAnswers):
    """A page of snapshots."""

    snapshots: list[Snapshot]


class VolumeTypes(ListOfAnswers):
    """A page of volume types, by name."""

    volume_types: list[VolumeType]


class Device(Answer):
    """Where a volume's bytes are: `device_size` of them at `path`."""

    path: str
    device_size: int


class Extension(Answer):
    """Whether the next extension of a pool would work, and why not."""

    works: bool
    reason: str | None


class Pool(Answer):
    """The space behind a storage class, in bytes; `free` is null where it is handed out thin.

    `group_free`: what the volume group of a thin pool has left; `addable`: what of it extensions
    can add to its data. `fill_rate`: bytes per second of the last ten minutes, null when not known
    yet. `full_in`: seconds until the data are full at that rate, extensions to come included;
    `metadata_full_in`: until the metadata are, without; null where nothing fills.
    """

    storage_class: str = Field(alias="class")
    name: str
    size: int
    used: int
    metadata_size: int
    metadata_used: int
    mode: str
    needs_check: bool
    free: int | None
    trouble: PoolTrouble | None
    when_full: Literal["queue", "error"] | None
    group_free: int | None
    addable: int
    extension: Extension
    fill_rate: int | None
    full_in: int | None
    metadata_full_in: int | None


class Pools(ListOfAnswers):
    """A page of pools."""

    pools: list[Pool]


class BackupFile(Answer):
    """A file of a backup: the volume group's text, or the packed mappings of a thin pool."""

    kind: Literal["vg", "thin.xml.gz"]
    path: str
    size: int


class Backup(Answer):
    """A backup of a class's metadata; the highest `number` is the newest."""

    storage_class: str = Field(alias="class")
    number: int
    taken_at: Instant
    files: list[BackupFile]


class Backups(ListOfAnswers):
    """A page of backups, class by class, the newest first."""

    backups: list[Backup]


class CatalogCopy(Answer):
    """The copy of the catalog that lies with a class's disks.

    `written_at` is null where there is none; `behind` is how many seconds the catalog has had
    changes that the copy lacks.
    """

    storage_class: str = Field(alias="class")
    written_at: str | None
    behind: float


class Health(Answer):
    """How the host does. `queued` counts the operations and jobs under way."""

    status: str
    version: str
    zone: str
    pools: list[Pool]
    queued: int
    catalog_copies: list[CatalogCopy]
    problems: list[str]


class Finding(Answer):
    """Something that does not agree. `fix`: what a fix would do; null: only a person can help."""

    id: str
    kind: FindingKind
    storage_class: str | None = Field(alias="class")
    subject: str
    explanation: str
    fix: str | None
    advice: str


class FixedFinding(Finding):
    """What became of a fix: `failure` says why it was not done."""

    failure: str | None


class Examination(ListOfAnswers):
    """All that does not agree, seen twice."""

    examined_at: Instant
    findings: list[Finding]


class FixedFindings(Examination):
    """What was put right, and what there is to be found after it."""

    fixed: list[FixedFinding]


class Metadata(Answer):
    """What some clients ask once, to make names of resources."""

    domain: str
    partition: str
    platform: str


class Problem(BaseModel):
    """Every error. `type` says which further keys there are."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    type: str
    message: str
