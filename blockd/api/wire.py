"""The bodies of requests, and what they mean to the service."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json

from blockd.api.faults import validated
from blockd.api.scalars import (
    Boolean,
    GroupName,
    Name,
    NoKey,
    PerfIops,
    Size,
    SizeOrInherited,
    StorageClass,
    Tags,
    Uuid,
    VolumeIds,
)
from blockd.domain.errors import InvalidArguments
from blockd.domain.group import NewGroup
from blockd.domain.snapshot import NewSnapshot, Quiesce, SnapshotChange
from blockd.domain.volume import DEFAULT_PERF_IOPS, NewVolume, VolumeChange


class Body(BaseModel):
    """A JSON object. Unknown fields are ignored, and null is the same as absent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


_Body = TypeVar("_Body", bound=Body)


class FromEmpty(Body):
    """A volume that reads as zeros."""

    size: Size


class FromSnapshot(Body):
    """A clone."""

    snapshot_id: Uuid
    size: SizeOrInherited = None


class CreateVolume(Body):
    """Exactly one of `from_empty` and `from_snapshot`; `class` is an extension of ours."""

    name: Name | None = None
    project_id: Uuid | None = None
    from_empty: FromEmpty | None = None
    from_snapshot: FromSnapshot | None = None
    perf_iops: PerfIops | None = None
    tags: Tags | None = None
    storage_class: StorageClass | None = Field(default=None, alias="class")
    kms_key_id: NoKey = None

    def new(self) -> NewVolume:
        """The request as the service takes it.

        Raises:
            InvalidArguments: none or both of `from_empty` and `from_snapshot`.
        """
        if self.from_empty is not None and self.from_snapshot is not None:
            help_text = "at most one of from_empty, from_snapshot could be set"
            raise InvalidArguments.one("from_empty", "constraint", help_text)
        size_bytes, snapshot_id = None, None
        if self.from_empty is not None:
            size_bytes = self.from_empty.size
        elif self.from_snapshot is not None:
            size_bytes, snapshot_id = self.from_snapshot.size, self.from_snapshot.snapshot_id
        else:
            help_text = "one of from_empty, from_snapshot must be set"
            raise InvalidArguments.one("from_empty", "required", help_text)
        return NewVolume(
            name=self.name,
            project_id=self.project_id,
            size_bytes=size_bytes,
            perf_iops=self.perf_iops or DEFAULT_PERF_IOPS,
            tags=self.tags or (),
            storage_class=self.storage_class,
            snapshot_id=snapshot_id,
        )


class ChangeVolume(Body):
    """What is absent stays as it is; `tags: []` clears them."""

    name: Name | None = None
    size: Size | None = None
    tags: Tags | None = None
    perf_iops: PerfIops | None = None

    def change(self) -> VolumeChange:
        """The request as the service takes it."""
        return VolumeChange(
            name=self.name, tags=self.tags, size_bytes=self.size, perf_iops=self.perf_iops
        )


class CreateSnapshot(Body):
    """A picture of a volume as it is now."""

    volume_id: Uuid
    name: Name | None = None
    project_id: Uuid | None = None
    tags: Tags | None = None
    public: Boolean | None = None
    quiesce: Quiesce | None = Field(
        default=None, description="whether the guest's file systems are frozen for it; absent: auto"
    )

    def new(self) -> NewSnapshot:
        """The request as the service takes it."""
        return NewSnapshot(
            volume_id=self.volume_id,
            name=self.name,
            project_id=self.project_id,
            tags=self.tags or (),
            public=bool(self.public),
            quiesce=self.quiesce or Quiesce.AUTO,
        )


class SnapshotGroup(Body):
    """Pictures of several volumes at one instant: all of them, or none."""

    volume_ids: VolumeIds = Field(description="each once; their snapshots come in this order")
    name: GroupName | None = Field(
        default=None, description="they are called <name>-1, <name>-2, and so on"
    )
    project_id: Uuid | None = None
    quiesce: Quiesce | None = Field(
        default=None, description="whether guests are frozen for it; absent: auto"
    )

    def new(self) -> NewGroup:
        """The request as the service takes it."""
        return NewGroup(self.volume_ids, self.name, self.project_id, self.quiesce or Quiesce.AUTO)


class ChangeSnapshot(Body):
    """What is absent stays as it is; `tags: []` clears them."""

    name: Name | None = None
    tags: Tags | None = None
    public: Boolean | None = None

    def change(self) -> SnapshotChange:
        """The request as the service takes it."""
        return SnapshotChange(name=self.name, tags=self.tags, public=self.public)


class RevertVolume(Body):
    """Give a volume the bytes of one of its snapshots; what it held becomes a snapshot first."""

    snapshot_id: Uuid
    keep_previous: Boolean | None = Field(default=None, description="absent: true")

    @property
    def keeps_previous(self) -> bool:
        """Whether what the volume held is kept; so unless it is refused in so many words."""
        return self.keep_previous is not False


class Attach(Body):
    """To a libvirt domain, by name or UUID; `uri` where several connections have it."""

    domain: str = Field(min_length=1, max_length=255)
    target: str | None = Field(
        default=None,
        pattern=r"^(vd|sd)[a-z]{1,2}$",
        description="the disk's name, whose letters tell the bus: vdb (virtio), sda (SCSI)",
    )
    uri: str | None = Field(default=None, min_length=1, max_length=255)


class Detach(Body):
    """From a domain, by name or UUID; absent: from the only one that has it."""

    domain: str | None = Field(default=None, min_length=1, max_length=255)


class Undelete(Body):
    """Nothing to say: the body may be left out."""


class FixFindings(Body):
    """Which findings, by id; left out: all that can be put right."""

    ids: list[str] | None = Field(default=None, min_length=1, max_length=1000)


class RepairPool(Body):
    """Nothing to say."""


class TakeBackup(Body):
    """Of which class; absent: of all."""

    storage_class: StorageClass | None = Field(default=None, alias="class")


async def read_body(request: web.Request) -> bytes:
    """The body as it was sent.

    Raises:
        InvalidArguments: it is broken below JSON (chunks, compression).
        web.HTTPRequestEntityTooLarge: more than 1 MiB.
    """
    try:
        return await request.read()
    except web.RequestPayloadError as err:
        raise _not_json("body cannot be decoded") from err


def parse_body(model: type[_Body], raw: bytes) -> _Body:
    """`raw` as a `model`.

    Of a key that occurs twice the last one counts.

    Raises:
        InvalidArguments: no UTF-8, no JSON, no object, or faults in its fields.
    """
    try:
        # Strict UTF-8, bounded depth and digits, no lone surrogates: all of it ValueError.
        values = from_json(raw, allow_inf_nan=False)
    except ValueError as err:
        raise _not_json(f"body must be a JSON object: {err}") from err
    return validated(model, values)


def _not_json(help_text: str) -> InvalidArguments:
    return InvalidArguments.one("body", "format", help_text)
