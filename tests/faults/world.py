"""What must be there: every volume and snapshot with each of its blocks, and what verbs make of it.

A world is a value: `after` answers another one. So what a crash may leave is a list of worlds: the
one before the operation that was under way, and the one after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.stamps import BLOCK_BYTES

#: What a snapshot is called here that a revert keeps; its real name ends with the time.
KEPT = " before revert"


@dataclass(frozen=True)
class Item:
    """A volume, a snapshot or an object: the generation of each block of 4 KiB (0: zeros)."""

    blocks: tuple[int, ...]
    in_trash: bool = False

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self.blocks) * BLOCK_BYTES


@dataclass(frozen=True)
class Op:
    """One operation. What the fields mean depends on the verb: see `World.after`."""

    verb: str
    name: str = ""
    source: str = ""
    blocks: int = 0
    start: int = 0
    end: int = 0
    generation: int = 0

    def __str__(self) -> str:
        """For people."""
        fields = [self.verb, self.name]
        if self.source:
            fields.append(f"of {self.source}")
        if self.blocks:
            fields.append(f"{self.blocks} blocks")
        if self.end:
            fields.append(f"{self.start} to {self.end} generation {self.generation}")
        return " ".join(fields)


@dataclass(frozen=True)
class World:
    """What there is, by name.

    Attributes:
        parents: of each snapshot that was taken of a volume, the volume.
        keeps_trash: whether what is deleted can come back; else it is erased at once.
    """

    volumes: Mapping[str, Item] = field(default_factory=dict)
    snapshots: Mapping[str, Item] = field(default_factory=dict)
    objects: Mapping[str, Item] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    keeps_trash: bool = False

    def after(self, op: Op) -> World:
        """The world when `op` is done."""
        match op.verb:
            case "create":
                return self._volume(op.name, (0,) * op.blocks)
            case "write":
                blocks = list(self.volumes[op.name].blocks)
                blocks[op.start : op.end] = [op.generation] * (op.end - op.start)
                return self._volume(op.name, blocks)
            case "snapshot":
                return self._taken(op.name, op.source)
            case "group":
                return self.amid(op, group_writes(op)).with_group(op)
            case "clone":
                return self._volume(op.name, _longer(self.snapshots[op.source].blocks, op.blocks))
            case "grow":
                return self._volume(op.name, _longer(self.volumes[op.name].blocks, op.blocks))
            case "revert" | "revert for good":
                before = self.volumes[op.name].blocks
                content = _longer(self.snapshots[op.source].blocks, len(before))
                world = self._volume(op.name, content)
                if op.verb == "revert for good":
                    return world
                kept = world._snapshot(op.name + KEPT, before)
                return replace(kept, parents={**self.parents, op.name + KEPT: op.name})
            case "delete volume":
                return replace(self, volumes=self._deleted(self.volumes, op.name))
            case "delete snapshot":
                return replace(self, snapshots=self._deleted(self.snapshots, op.name))
            case "undelete volume":
                return self._volume(op.name, self.volumes[op.name].blocks)
            case "undelete snapshot":
                return self._snapshot(op.name, self.snapshots[op.name].blocks)
            case "export":
                objects = {**self.objects, op.name: Item(self.snapshots[op.source].blocks)}
                return replace(self, objects=objects)
            case "import":
                return self._snapshot(op.name, self.objects[op.source].blocks)
            case "keep trash":
                return replace(self, keeps_trash=True)
        raise ValueError(op.verb)

    def with_objects(self, keys: Sequence[str]) -> World:
        """The same with these objects alone."""
        return replace(self, objects={key: self.objects[key] for key in keys})

    def amid(self, group: Op, writes: int) -> World:
        """The world when so many of the writes are done that go on while a group is taken.

        They go from volume to volume: write number n to volume n % count, in ascending order.
        """
        world, names = self, [volume for _, volume in group_members(group)]
        for place, name in enumerate(names):
            done = len(range(place, writes, len(names)))
            blocks = list(world.volumes[name].blocks)
            blocks[group.start : group.start + done] = [group.generation] * done
            world = world._volume(name, blocks)
        return world

    def with_group(self, group: Op) -> World:
        """With its snapshots, of its volumes as they are."""
        world = self
        for name, volume in group_members(group):
            world = world._taken(name, volume)
        return world

    def _taken(self, name: str, volume: str) -> World:
        world = self._snapshot(name, self.volumes[volume].blocks)
        return replace(world, parents={**self.parents, name: volume})

    def _volume(self, name: str, blocks: Sequence[int]) -> World:
        return replace(self, volumes={**self.volumes, name: Item(tuple(blocks))})

    def _snapshot(self, name: str, blocks: Sequence[int]) -> World:
        return replace(self, snapshots={**self.snapshots, name: Item(tuple(blocks))})

    def _deleted(self, items: Mapping[str, Item], name: str) -> dict[str, Item]:
        others = {other: item for other, item in items.items() if other != name}
        return {**others, name: replace(items[name], in_trash=True)} if self.keeps_trash else others


def group_members(group: Op) -> list[tuple[str, str]]:
    """Its snapshots and of which volumes they are; `source` names these, with blanks between."""
    return [(f"{group.name}-{n}", volume) for n, volume in enumerate(group.source.split(), 1)]


def group_writes(group: Op) -> int:
    """How many blocks are written while it is taken, in all of its volumes."""
    return (group.end - group.start) * len(group_members(group))


def _longer(blocks: Sequence[int], count: int) -> tuple[int, ...]:
    return (*blocks, *(0,) * (count - len(blocks)))


@dataclass(frozen=True)
class Found:
    """What there is, as it was read: by kind (`volumes`, `snapshots`) and name."""

    volumes: Mapping[str, Item]
    snapshots: Mapping[str, Item]

    def of(self, owns: Callable[[str], bool]) -> Found:
        """What has a name like that."""
        return Found(
            {name: item for name, item in self.volumes.items() if owns(name)},
            {name: item for name, item in self.snapshots.items() if owns(name)},
        )

    def difference(self, allowed: Sequence[World], written: str = "") -> str | None:
        """None if this is one of the worlds; else how it differs from the last of them.

        Args:
            written: a volume that was being written: each block of it is that of one of the worlds.
        """
        choices = [world.volumes[written].blocks for world in allowed] if written else []
        differences = [self._from(world, written, choices) for world in allowed]
        return None if None in differences else differences[-1]

    def _from(self, world: World, written: str, choices: Sequence[Sequence[int]]) -> str | None:
        kinds = {
            "volume": (self.volumes, world.volumes),
            "snapshot": (self.snapshots, world.snapshots),
        }
        for kind, (found, wanted) in kinds.items():
            if found.keys() != wanted.keys():
                return f"{kind}s {sorted(found)}, expected {sorted(wanted)}"
            for name, item in found.items():
                if item.in_trash != wanted[name].in_trash:
                    return f"{kind} {name}: in the trash: {item.in_trash}"
                is_mixed = kind == "volume" and name == written
                line = unlike(item.blocks, choices if is_mixed else [wanted[name].blocks])
                if line:
                    return f"{kind} {name}: {line}"
        return None


def unlike(found: Sequence[int], choices: Sequence[Sequence[int]]) -> str | None:
    """Where a content differs from all that it could be."""
    if len(found) != len(choices[0]):
        return f"{len(found)} blocks, expected {len(choices[0])}"
    for number, generation in enumerate(found):
        if all(choice[number] != generation for choice in choices):
            expected = " or ".join(str(choice[number]) for choice in choices)
            return f"block {number} is of generation {generation}, expected {expected}"
    return None


def world_to_json(world: World) -> dict[str, Any]:
    """Short: equal blocks in a row are counted."""
    items = {
        kind: {name: [_runs(item.blocks), item.in_trash] for name, item in of_kind.items()}
        for kind, of_kind in (
            ("volumes", world.volumes),
            ("snapshots", world.snapshots),
            ("objects", world.objects),
        )
    }
    return {**items, "parents": dict(world.parents), "keeps_trash": world.keeps_trash}


def world_from_json(fields: Mapping[str, Any]) -> World:
    """The inverse."""
    items = {
        kind: {
            name: Item(tuple(g for g, count in runs for _ in range(count)), in_trash)
            for name, (runs, in_trash) in fields[kind].items()
        }
        for kind in ("volumes", "snapshots", "objects")
    }
    return World(**items, parents=fields["parents"], keeps_trash=fields["keeps_trash"])


def _runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    return [(generation, len(list(run))) for generation, run in itertools.groupby(blocks)]


def op_from(fields: Mapping[str, Any]) -> Op:
    """An operation from JSON, see `dataclasses.asdict`."""
    return Op(**fields)
