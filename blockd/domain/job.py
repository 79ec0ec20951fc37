"""Long work on volumes, snapshots and objects: what is asked, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class JobKind(StrEnum):
    """What is being done."""

    EXPORT = "export"
    IMPORT = "import"
    VERIFY = "verify"
    # of thick classes, whose bytes take as long as the disk takes
    CREATE = "create"
    CLONE = "clone"
    GROW = "grow"
    REVERT = "revert"


TRANSFERS = frozenset({JobKind.EXPORT, JobKind.IMPORT, JobKind.VERIFY})


class JobState(StrEnum):
    """Where a job stands; the last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Phase(StrEnum):
    """How far a job durably is: what the next daemon has to do with it."""

    ENDED = ""
    BEGUN = "begun"  # rows, and a disk that is not finished; a revert: the volume is what it was
    CREATING = "creating"  # an upload may exist whose id is not known
    UPLOADING = "uploading"
    COMPLETING = "completing"  # the object may be there
    UNDOING = "undoing"  # the upload is to be aborted, whatever is found of it
    MERGING = "merging"  # a revert: the volume has, or is about to have, the snapshot's bytes
    AGAIN = "again"  # merged; the snapshot is to be taken again
    SHOWING = "showing"  # all is done but the front, which users may have seen and written to


class Compression(StrEnum):
    """How an exported image's clusters are packed; every reader of QCOW2 understands `zlib`."""

    NONE = "none"
    ZLIB = "zlib"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the catalog, and the journal entry of the work until it has ended.

    Attributes:
        volume_id: the volume that is made, grown or reverted; None for a transfer.
        snapshot_id: the snapshot that is exported, imported, cloned or reverted to.
        bucket, key: the object of a transfer.
        bytes_done: of `bytes_total`, as they pass the network; None before the size is known.
        rate_bytes_s: over the last seconds; None while nothing runs.
        eta_s: until the end at this rate.
        attempt: how many times it was begun: 2 after one restart of the daemon.
        phase: how far it durably is (`Phase`); empty when nothing is left to be done or undone.
        args: what carrying it out needs to know, as JSON values.
        content_digest: of the image, once it is known (`transfer/digest.py`).
        error: why it failed, in one line.
    """

    id: str
    kind: JobKind
    state: JobState
    project_id: str
    volume_id: str | None
    snapshot_id: str | None
    bucket: str | None
    key: str | None
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    attempt: int = 0
    bytes_done: int = 0
    bytes_total: int | None = None
    phase: Phase = Phase.ENDED
    args: dict[str, object] = field(default_factory=dict)
    content_digest: str | None = None
    error: str | None = None
    rate_bytes_s: float | None = None
    eta_s: float | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked for its end."""
        return "cancelled" in self.args

    @property
    def is_stopped(self) -> bool:
        """Whether it is not to be gone on with."""
        return self.is_cancelled or self.lost is not None

    @property
    def lost(self) -> str | None:
        """Why the snapshot that it needs is gone, once it is."""
        reason = self.args.get("lost")
        return None if reason is None else str(reason)

    @property
    def has_ended(self) -> bool:
        """Whether it stands for good."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shall hold; None is any."""

    kind: JobKind | None = None
    state: JobState | None = None
    volume_id: str | None = None
    snapshot_id: str | None = None
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewExport:
    """A checked request to export a snapshot."""

    bucket: str
    key: str
    compression: Compression = Compression.NONE


@dataclass(frozen=True, slots=True)
class NewImport:
    """A checked request to import an object as a snapshot.

    Attributes:
        size_bytes: None means the image's own; larger is allowed, smaller is refused.
        storage_class: None means the configured default.
    """

    bucket: str
    key: str
    name: str | None
    project_id: str | None
    size_bytes: int | None
    tags: tuple[str, ...]
    public: bool
    storage_class: str | None
