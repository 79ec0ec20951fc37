"""What a group of snapshots may have left, that was taken while somebody wrote to its volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tests.faults.world import Found, Item, Op, World, group_members, group_writes, unlike


def group_outcome(before: World, group: Op, found: Found, *, is_answered: bool) -> World:
    """The world that was found.

    Args:
        before: without the group, and without the writes that went on meanwhile.
        is_answered: so all of both must be there. Else: each block of its volumes is old or new,
            and there are all of its snapshots, of one instant, or none.

    Raises:
        AssertionError: the group cannot have left that.
    """
    world, written = before, before.amid(group, group_writes(group))
    for _, name in group_members(group):
        assert name in found.volumes, f"volume {name} is gone"
        blocks, choices = found.volumes[name].blocks, [written.volumes[name].blocks]
        if not is_answered:
            choices.append(before.volumes[name].blocks)
        line = unlike(blocks, choices)
        assert not line, f"volume {name}: {line}"
        world = replace(world, volumes={**world.volumes, name: Item(blocks)})
    names = [name for name, _ in group_members(group)]
    there = [name for name in names if name in found.snapshots]
    assert there == names or (not there and not is_answered), f"of {names} there are {there}"
    if there:
        world = _with_snapshots(before, world, group, [found.snapshots[n].blocks for n in names])
    difference = found.difference([world])
    assert difference is None, difference
    return world


def _with_snapshots(
    before: World, world: World, group: Op, contents: Sequence[tuple[int, ...]]
) -> World:
    """Taken between two of the writes; or by the next daemon, when nobody wrote any more."""
    writes = sum(blocks.count(group.generation) for blocks in contents)
    for instant in (before.amid(group, writes), world):
        taken = instant.with_group(group)
        names = [name for name, _ in group_members(group)]
        if [taken.snapshots[name].blocks for name in names] == list(contents):
            return replace(world, snapshots=taken.snapshots, parents=taken.parents)
    raise AssertionError(f"{group}: its snapshots are of no single instant ({writes} writes)")
