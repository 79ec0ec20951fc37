"""The one table of transitions. Nobody else assigns a status.

`in_use` is no stored status: it is what a reader sees of an `available` volume whose device is
open (`seen_status`), because the kernel tells nobody when a device is opened (product, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from blockd.domain.errors import TransientState, WrongState


class Status(StrEnum):
    """A status of the API; official clients hang on any other word (wire.md, d)."""

    CREATING = "creating"
    AVAILABLE = "available"
    IN_USE = "in_use"
    UPDATING = "updating"
    EXPORTING = "exporting"
    DELETED = "deleted"
    ERROR = "error"


class Event(StrEnum):
    """What may happen to a volume or a snapshot."""

    CREATED = "created"
    FAILED = "failed"
    CHANGE = "change"
    CHANGED = "changed"
    EXPORT = "export"
    EXPORTED = "exported"
    DELETE = "delete"
    UNDELETE = "undelete"
    UNDELETE_BROKEN = "undelete_broken"
    LOST = "lost"


CREATING, AVAILABLE, IN_USE, UPDATING, EXPORTING, DELETED, ERROR = Status

#: Statuses that end by themselves; a request that needs another one answers `transient_state`.
TRANSIENT: Final = frozenset({CREATING, UPDATING, EXPORTING})

VOLUME_MOVES: Final[Mapping[tuple[Status, Event], Status]] = {
    (CREATING, Event.CREATED): AVAILABLE,
    (CREATING, Event.FAILED): ERROR,
    (AVAILABLE, Event.CHANGE): UPDATING,
    (UPDATING, Event.CHANGED): AVAILABLE,
    (UPDATING, Event.FAILED): AVAILABLE,  # the volume itself is whole: old size, old content
    (AVAILABLE, Event.LOST): ERROR,  # its disk is gone, as a catalog that was restored finds
    (AVAILABLE, Event.DELETE): DELETED,
    (ERROR, Event.DELETE): DELETED,
    (DELETED, Event.UNDELETE): AVAILABLE,
    (DELETED, Event.UNDELETE_BROKEN): ERROR,
}

SNAPSHOT_MOVES: Final[Mapping[tuple[Status, Event], Status]] = {
    (CREATING, Event.CREATED): AVAILABLE,
    (CREATING, Event.FAILED): ERROR,
    (AVAILABLE, Event.EXPORT): EXPORTING,
    (EXPORTING, Event.EXPORTED): AVAILABLE,
    (EXPORTING, Event.FAILED): AVAILABLE,  # the snapshot itself is whole; the job says why
    (AVAILABLE, Event.LOST): ERROR,  # the kernel gave its bytes up: its store is full
    (EXPORTING, Event.LOST): ERROR,
    (DELETED, Event.LOST): DELETED,  # and in error, should it be undeleted
    (AVAILABLE, Event.DELETE): DELETED,
    (ERROR, Event.DELETE): DELETED,
    (DELETED, Event.UNDELETE): AVAILABLE,
    (DELETED, Event.UNDELETE_BROKEN): ERROR,
}

MOVES: Final[Mapping[str, Mapping[tuple[Status, Event], Status]]] = {
    "volume": VOLUME_MOVES,
    "snapshot": SNAPSHOT_MOVES,
}


def move(resource: str, resource_id: str, status: Status, event: Event) -> Status:
    """The status after `event`.

    Args:
        resource: `volume` or `snapshot`.
        resource_id: for the error only.
        status: a stored status, never `in_use`.

    Raises:
        TransientState: not now, but later: the status ends by itself.
        WrongState: not in this status.
    """
    try:
        return MOVES[resource][status, event]
    except KeyError:
        if status in TRANSIENT:
            raise TransientState(resource, resource_id, status) from None
        raise WrongState(resource, resource_id, status, event) from None


def seen_status(stored: Status, *, is_open: bool) -> Status:
    """What a reader is told: an available resource that somebody holds open is `in_use`."""
    return Status.IN_USE if stored is Status.AVAILABLE and is_open else stored
