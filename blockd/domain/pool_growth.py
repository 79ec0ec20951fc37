"""When a thin pool is extended, by how much, and what stands in the way. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blockd.domain.pool import PoolUse
from blockd.domain.units import GIB, MIB, format_size

#: LVM makes no larger metadata (lvm2, DM_THIN_MAX_METADATA_SIZE; dm-thin takes a little more).
MOST_METADATA_BYTES: Final = 15 * GIB + 832 * MIB


@dataclass(frozen=True, slots=True)
class PartBounds:
    """The configuration's word on a pool's data, or on its metadata.

    Attributes:
        low_water_percent: used beyond this, it is extended.
        step_percent: by so much of its present size; 0: never.
        most_bytes: no further than this; 0: as far as the volume group has room.
    """

    low_water_percent: float = 80.0
    step_percent: float = 20.0
    most_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GrowthBounds:
    """Of both."""

    data: PartBounds = PartBounds()
    metadata: PartBounds = PartBounds(70.0, 50.0, MOST_METADATA_BYTES)


@dataclass(frozen=True, slots=True)
class PartGrowth:
    """What data, or metadata, can grow by.

    Attributes:
        step_bytes: in the next step.
        obstacle: why that is 0, else empty.
        is_low: it is used beyond the low-water mark, so the step is due.
    """

    step_bytes: int
    obstacle: str
    is_low: bool

    @property
    def due_bytes(self) -> int:
        """What is to be added now."""
        return self.step_bytes if self.is_low else 0

    @property
    def is_stuck(self) -> bool:
        """It would have to grow and cannot."""
        return self.is_low and not self.step_bytes


@dataclass(frozen=True, slots=True)
class Growth:
    """What a pool can grow by; `addable_bytes` of data in all steps to come."""

    data: PartGrowth
    metadata: PartGrowth
    addable_bytes: int

    @property
    def is_due(self) -> bool:
        """Whether there is something to add now."""
        return bool(self.data.due_bytes or self.metadata.due_bytes)

    @property
    def is_stuck(self) -> bool:
        """Whether something would have to be added and cannot."""
        return self.data.is_stuck or self.metadata.is_stuck

    @property
    def obstacle(self) -> str:
        """Why the next extension would not work, of data or of metadata; empty when both would."""
        parts = [("data", self.data.obstacle), ("metadata", self.metadata.obstacle)]
        return "; ".join(f"{name}: {obstacle}" for name, obstacle in parts if obstacle)


def growth(use: PoolUse, bounds: GrowthBounds) -> Growth:
    """What can be done about a thin pool.

    Metadata come first: without room for them a pool takes no writes at all, while without room
    for data it takes those to what exists. They cost twice what they grow by, as LVM keeps a spare
    of the same size; and data leave in the volume group what the next step of metadata needs.
    """
    group, extent = use.name.partition("/")[0], use.extent_bytes
    free = use.group_free_bytes or 0
    has = f"volume group {group} has {format_size(free)} free"
    metadata = _part(
        "metadata_",
        bounds.metadata,
        (use.metadata_used_bytes, use.metadata_size_bytes),
        free // 2,
        extent,
        f"{has}, and each step takes its size twice",
    )
    room = _whole(free - 2 * metadata.step_bytes, extent)
    kept = f", {format_size(2 * metadata.step_bytes)} of it for metadata" if free >= extent else ""
    data = _part("", bounds.data, (use.used_bytes, use.size_bytes), room, extent, f"{has}{kept}")
    most = bounds.data.most_bytes
    left = _whole(most - use.size_bytes, extent) if most else room
    return Growth(data, metadata, 0 if data.obstacle else min(room, left))


def _part(
    prefix: str,
    bounds: PartBounds,
    used_and_size: tuple[int, int],
    room: int,
    extent: int,
    no_room: str,
) -> PartGrowth:
    used, size = used_and_size
    is_low = size > 0 and used * 100 >= size * bounds.low_water_percent
    most = bounds.most_bytes
    if not bounds.step_percent:
        return PartGrowth(0, f"{prefix}extend_percent is 0 in the configuration", is_low)
    if most and most < size + extent:
        reached = f"{prefix}extend_to is reached: {format_size(most)}"
        return PartGrowth(0, reached, is_low)
    if room < extent:
        return PartGrowth(0, no_room, is_low)
    # The configured step, or what brings it below the mark again if that is more.
    enough = int(used * 100 / bounds.low_water_percent) + 1 - size
    wanted = -(-max(int(size * bounds.step_percent / 100), enough, 1) // extent) * extent
    allowed = min(room, most - size) if most else room
    return PartGrowth(min(wanted, _whole(allowed, extent)), "", is_low)


def _whole(size_bytes: int, extent: int) -> int:
    return size_bytes // extent * extent
