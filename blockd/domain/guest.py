"""Guests of a hypervisor, as libvirt tells of them, and how they hold volumes and snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class AttachmentStatus(StrEnum):
    """How far an attachment is; a reference's words of the API (wire.md)."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"


@dataclass(frozen=True, slots=True)
class GuestKey:
    """What names a guest: libvirt's connection URI, and the domain's UUID."""

    uri: str
    domain_id: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """One row of the catalog: a guest has a volume, or is getting or giving it up.

    Attributes:
        id: the reference's.
        volume_id: the volume's, or that of the snapshot that the guest reads.
        target: the disk's name in the domain, e.g. `vdb`; empty before it is chosen.
    """

    id: str
    volume_id: str
    guest: GuestKey
    domain_name: str
    target: str
    status: AttachmentStatus
    created_at: str


@dataclass(frozen=True, slots=True)
class GuestDisk:
    """A disk of a domain whose source is a front of ours.

    Attributes:
        volume_id: whose front it is: a volume's, or a snapshot's.
        live: the guest that runs has it.
        persistent: the definition has it, so the guest gets it when it is started.
        iops: the most operations a second that it is bound to; None: no bound.
    """

    volume_id: str
    target: str
    live: bool
    persistent: bool
    iops: int | None


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain.

    Attributes:
        has_agent: its guest agent is connected, or libvirt does not say that it is not.
        is_paused: it is active, but its processors stand still.
    """

    key: GuestKey
    name: str
    is_active: bool
    is_paused: bool
    has_agent: bool
    disks: tuple[GuestDisk, ...]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one look at a connection has shown.

    Attributes:
        unseen: domains that cannot be told of, and why: what they have is not known.
    """

    guests: tuple[Guest, ...]
    unseen: Mapping[GuestKey, str]


@dataclass(frozen=True, slots=True)
class DiskOrder:
    """A disk to be attached.

    Attributes:
        path: of the front.
        serial: by which the guest finds it under /dev/disk/by-id. A virtio disk shows its first 20
            characters (VIRTIO_BLK_ID_BYTES), a SCSI disk all 36.
        target: the name asked for, e.g. `vdb` or `sda`, whose letters tell the bus; None: the next
            free one of virtio.
        iops: the most operations a second; None: no limit.
        discards: whether what the guest discards is to reach the pool.
        is_read_only: the guest sees a disk that cannot be written to.
    """

    path: str
    serial: str
    target: str | None
    iops: int | None
    discards: bool
    is_read_only: bool = False
