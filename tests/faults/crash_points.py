"""A recorded history, and the points of its log at which the power may have gone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.world import Op, World, op_from
from tests.faults.write_log import Entry

START = "start"


@dataclass(frozen=True)
class Recording:
    """What was done while writes were logged.

    Attributes:
        digests: of each object, what its export told.
    """

    kind: str
    ops: list[Op]
    digests: dict[str, str]

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Recording:
        """What `save` wrote."""
        fields = json.loads(path.read_text("utf-8"))
        return cls(**{**fields, "ops": [op_from(op) for op in fields["ops"]]})


@dataclass(frozen=True)
class Point:
    """The disk after the first `entries` entries of the log.

    Attributes:
        op: the operation that was under way, or the last that was answered; its number.
        is_answered: what it made must be there. Else: wholly or not at all.
        is_barrier: the last entry is a flush, or a write past the disk's cache.
    """

    entries: int
    op: int
    is_answered: bool
    is_barrier: bool


def mark(op: int, *, is_answered: bool) -> str:
    """What the log is told when an operation begins, and when it was answered."""
    return f"{'answered' if is_answered else 'begun'}-{op}"


def all_points(entries: Sequence[Entry]) -> list[Point]:
    """Behind each write after the start, in order."""
    points: list[Point] = []
    op, is_answered, is_started = -1, True, False
    for number, entry in enumerate(entries, 1):
        word, _, told = entry.mark.partition("-")
        if entry.mark == START:
            is_started = True
        elif word in ("begun", "answered"):
            op, is_answered = int(told), word == "answered"
        elif is_started and not entry.mark:
            points.append(Point(number, op, is_answered, entry.is_barrier))
    return points


def choose(points: Sequence[Point], count: int) -> list[Point]:
    """So many of them, in order: barriers before all others, the same share of each operation."""
    by_op: dict[int, list[Point]] = {}
    for point in points:
        by_op.setdefault(point.op, []).append(point)
    # Of each operation every barrier before the rest, each spread over the operation's length.
    queues = [
        [
            *_spread([p for p in group if p.is_barrier]),
            *_spread([p for p in group if not p.is_barrier]),
        ]
        for group in by_op.values()
    ]
    chosen: list[Point] = []
    for place in range(max(map(len, queues), default=0)):
        for queue in queues:
            if place < len(queue) and len(chosen) < count:
                chosen.append(queue[place])
    return sorted(chosen, key=lambda point: point.entries)


def _spread(points: Sequence[Point]) -> list[Point]:
    """The same in another order: any beginning of it is spread over the whole."""
    count = len(points)
    order = sorted(range(count), key=_reversed_bits)
    return [points[number] for number in order]


def _reversed_bits(number: int) -> int:
    return int(f"{number:016b}"[::-1], 2)


def worlds(ops: Sequence[Op]) -> list[World]:
    """Before all operations, and after each of them."""
    found = [World()]
    for op in ops:
        found.append(found[-1].after(op))
    return found
