"""What was done to a resource, as the catalog remembers it, and a place in that history."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

_PLACE: Final = re.compile(r"([0-9a-f]{8})-([0-9]{1,18})")


class EventKind(StrEnum):
    """Of what an event tells."""

    VOLUME = "volume"
    SNAPSHOT = "snapshot"
    JOB = "job"


class What(StrEnum):
    """What became of it. Deleted, it is in the trash and has changed; erased, it is removed."""

    CREATED = "created"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class ResourceNow:
    """A resource as the catalog has it; a job has no name, and its state for a status.

    Attributes:
        storage_class: of a volume or a snapshot, and so `disk`, the LV with its bytes.
        is_attached: a guest has the volume, or the snapshot.
    """

    name: str | None
    status: str
    error: str | None
    storage_class: str | None = None
    disk: str | None = None
    is_attached: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One change, as it was committed.

    Attributes:
        sequence: its number within its history; later ones are higher.
        status: the resource's (a job's state) with this change; of what was removed, its last.
        resource: as it was when the event was read, perhaps some changes later; None: it is gone.
    """

    sequence: int
    at: str
    kind: EventKind
    resource_id: str
    project_id: str
    what: What
    status: str
    resource: ResourceNow | None


@dataclass(frozen=True, slots=True)
class Place:
    """How far somebody has read: up to `sequence`. As text, an id of the stream: `9f1c03be-42`."""

    history: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.history}-{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The inverse of `str`; None if it is no place."""
        match = _PLACE.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; None is any. Both conditions hold together."""

    project_id: str | None = None
    resource_id: str | None = None
