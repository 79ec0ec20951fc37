"""What requests about object storage hold, and what their answers look like."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from blockd.api.answers import Answer, Instant, ListOfAnswers
from blockd.api.query import Paging
from blockd.api.scalars import (
    Boolean,
    Name,
    SizeOrInherited,
    StorageClass,
    Tags,
    Uuid,
    out_of_bounds,
    text,
    wrong_format,
)
from blockd.api.wire import Body
from blockd.domain.job import Compression, JobFilter, JobKind, JobState, NewExport, NewImport
from blockd.domain.listing import Page

_MAX_KEY_BYTES: Final = 1024
# Amazon S3 user guide, "Bucket naming rules"; names that look like addresses are none.
_BUCKET: Final = re.compile(r"(?!xn--)[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]")
_ADDRESS: Final = re.compile(r"[0-9]+(?:\.[0-9]+){3}")


def _bucket(value: object) -> str:
    name = text(value, 63)
    if not _BUCKET.fullmatch(name) or _ADDRESS.fullmatch(name):
        raise wrong_format("value must be a bucket's name: 3 to 63 of a-z, 0-9, '-' and '.'")
    return name


def _key(value: object) -> str:
    key = text(value, _MAX_KEY_BYTES)
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise out_of_bounds(f"value must have at most {_MAX_KEY_BYTES} bytes as UTF-8")
    # HTTP clients and proxies rewrite such paths, and the signature is over the path.
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise wrong_format("value must be a key without empty, '.' and '..' segments")
    return key


def _compression(value: object) -> Compression:
    try:
        return Compression(str(value))
    except ValueError:
        raise out_of_bounds(f"value must be one of {', '.join(Compression)}") from None


def _kind(value: object) -> JobKind:
    try:
        return JobKind(str(value))
    except ValueError:
        raise wrong_format(f"value must be one of {', '.join(JobKind)}") from None


def _state(value: object) -> JobState:
    try:
        return JobState(str(value))
    except ValueError:
        raise wrong_format(f"value must be one of {', '.join(JobState)}") from None


def _words(words: type) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": [str(word) for word in words]})  # type: ignore[attr-defined]


Bucket = Annotated[
    str,
    BeforeValidator(_bucket),
    WithJsonSchema({"type": "string", "minLength": 3, "maxLength": 63}),
]
Key = Annotated[
    str,
    BeforeValidator(_key),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": _MAX_KEY_BYTES}),
]


class ExportSnapshot(Body):
    """Where to; `compression` is an extension of ours."""

    bucket: Bucket
    key: Key
    compression: Annotated[
        Compression | None, BeforeValidator(_compression), _words(Compression)
    ] = None

    def new(self) -> NewExport:
        """The request as the service takes it."""
        return NewExport(self.bucket, self.key, self.compression or Compression.NONE)


class ImportSnapshotV1Alpha1(Body):
    """Where from; `class` is an extension of ours."""

    bucket: Bucket
    key: Key
    name: Name | None = None
    project_id: Uuid | None = None
    tags: Tags | None = None
    size: SizeOrInherited = Field(default=None, description="absent or 0: the image's own")
    storage_class: StorageClass | None = Field(default=None, alias="class")

    def new(self) -> NewImport:
        """The request as the service takes it."""
        return NewImport(
            bucket=self.bucket,
            key=self.key,
            name=self.name,
            project_id=self.project_id,
            size_bytes=self.size,
            tags=self.tags or (),
            public=False,
            storage_class=self.storage_class,
        )


class ImportSnapshot(ImportSnapshotV1Alpha1):
    """Where from; `class` is an extension of ours."""

    public: Boolean | None = None

    def new(self) -> NewImport:
        """The request as the service takes it."""
        return replace(super().new(), public=bool(self.public))


class VerifyObject(Body):
    """Which object."""

    bucket: Bucket
    key: Key


class CancelJob(Body):
    """Nothing to say: the body may be left out."""


class JobListing(Paging):
    """All conditions hold together."""

    kind: Annotated[JobKind | None, BeforeValidator(_kind), _words(JobKind)] = None
    state: Annotated[JobState | None, BeforeValidator(_state), _words(JobState)] = None
    volume_id: Uuid | None = None
    snapshot_id: Uuid | None = None
    project_id: Uuid | None = None

    def condition(self) -> JobFilter:
        """The filter as the service takes it."""
        return JobFilter(self.kind, self.state, self.volume_id, self.snapshot_id, self.project_id)

    def cut(self) -> Page:
        """The page that is asked for."""
        return Page(self.page, self.page_size)


class Job(Answer):
    """Long work. Sizes in bytes, `rate` in bytes per second, `eta` in seconds.

    Bucket and key are null where there is no object: volumes are made, grown and reverted too.
    """

    id: Uuid
    kind: JobKind
    resource: Literal["volume", "snapshot"]
    resource_id: Uuid | None
    volume_id: Uuid | None
    snapshot_id: Uuid | None
    project_id: Uuid
    bucket: str | None
    key: str | None
    state: JobState
    bytes_done: int
    bytes_total: int | None
    rate: int | None
    eta: int | None
    attempt: int
    error: str | None
    content_digest: str | None
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None


class Jobs(ListOfAnswers):
    """A page of jobs, newest first."""

    jobs: list[Job]
