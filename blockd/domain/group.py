"""Snapshots of several volumes at one instant, and what can be asked of them."""

from __future__ import annotations

from dataclasses import dataclass

from blockd.domain.snapshot import Quiesce, Snapshot

#: All their fronts stand still while one snapshot after another is made.
MOST_VOLUMES = 64


@dataclass(frozen=True, slots=True)
class NewGroup:
    """A checked request; name and project None mean generated and default."""

    volume_ids: tuple[str, ...]
    name: str | None
    project_id: str | None
    quiesce: Quiesce


@dataclass(frozen=True, slots=True)
class Group:
    """Snapshots that were taken together, in the order in which their volumes were named.

    Attributes:
        suspended_ms: for how long the volumes stood still; None: they are not taken yet.
    """

    id: str
    snapshots: tuple[Snapshot, ...]
    suspended_ms: int | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A snapshot to be made: the disk `disk`, of the disk `of_disk` behind a volume's front."""

    disk: str
    of_disk: str
    volume_id: str
