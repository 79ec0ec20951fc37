"""An entry of the journal: what is about to be done to disks, committed before it is begun."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import uuid4


class Verb(StrEnum):
    """What an intent is about. Each has one function that carries it out: `service/steps.py`."""

    CREATE_VOLUME = "create_volume"
    CHANGE_VOLUME = "change_volume"
    REVERT_VOLUME = "revert_volume"
    CREATE_SNAPSHOT = "create_snapshot"
    CREATE_GROUP = "create_group"
    ERASE = "erase"


@dataclass(frozen=True, slots=True)
class Intent:
    """One unfinished change.

    Attributes:
        id: grows with time; recovery goes by it.
        resource_id: the volume, snapshot or group; for an erasure the first disk's name.
        storage_class: whose disks are changed; a group may have more, see `classes`.
        phase: how far it is durably known to be; each verb has its own words.
        args: what carrying it out needs to know, as JSON values.
    """

    id: int
    verb: Verb
    resource_id: str
    storage_class: str
    phase: str = ""
    args: dict[str, object] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Every class whose disks are changed, in the order in which their turns are taken."""
        more = self.texts("classes") if "classes" in self.args else []
        return sorted({self.storage_class, *more})

    def text(self, key: str) -> str:
        """The argument `key`, a string."""
        return str(self.args[key])

    def texts(self, key: str) -> list[str]:
        """The argument `key`, a list of strings."""
        value = self.args[key]
        return [str(item) for item in value] if isinstance(value, list) else []


def disk_name(disk_id: str) -> str:
    """The name of the LV made for `disk_id`: a volume's, a snapshot's, or a revert's id."""
    return f"blockd-{disk_id}"


def new_id() -> str:
    """A fresh resource id: UUID, version 4, lower case."""
    return str(uuid4())
