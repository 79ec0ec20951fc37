"""What the doctor finds: that catalog, storage and object storage do not say the same."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FindingKind(StrEnum):
    """What it is about. docs/doctor.md has a line for each."""

    # between the catalog and the disks
    DISK_UNKNOWN = "disk-unknown"
    DISK_MISSING = "disk-missing"
    DISK_LEFT = "disk-left"
    FRONT_UNKNOWN = "front-unknown"
    FRONT_MISSING = "front-missing"
    FRONT_WRONG = "front-wrong"
    # of storage alone
    DEVICE_SUSPENDED = "device-suspended"
    LINK_WRONG = "link-wrong"
    DISK_ACTIVE = "disk-active"
    METADATA_SNAPSHOT_HELD = "metadata-snapshot-held"
    THIN_DEVICE_UNKNOWN = "thin-device-unknown"
    THIN_DEVICE_KEPT = "thin-device-kept"
    THIN_DEVICE_MISSING = "thin-device-missing"
    CREATION_CUT_SHORT = "creation-cut-short"
    # of the journal
    OPERATION_STUCK = "operation-stuck"
    JOB_STUCK = "job-stuck"
    # between the journal and object storage
    UPLOAD_LEFT = "upload-left"
    UPLOAD_UNKNOWN = "upload-unknown"
    # of the examination itself
    NOT_EXAMINED = "not-examined"


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them, in lines for people.

    Attributes:
        subject: what it is about, e.g. a disk or a volume's id.
        storage_class: whose, if any.
        fix: what a fix would do; None: nothing does it but a person.
        advice: a person's next step; empty where the fix is all there is to do.
    """

    kind: FindingKind
    subject: str
    explanation: str
    fix: str | None = None
    advice: str = ""
    storage_class: str | None = None

    @property
    def id(self) -> str:
        """The same in every examination."""
        where = "" if self.storage_class is None else f"{self.storage_class}/"
        return f"{self.kind}:{where}{self.subject}"


@dataclass(frozen=True, slots=True)
class Fixed:
    """What became of a finding; `failure` says why it could not be put right."""

    finding: Finding
    failure: str | None = None
