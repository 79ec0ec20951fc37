"""What the fault trials compare with: worlds, and the points that are chosen from a log."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.faults.crash_points import Point, all_points, choose, mark
from tests.faults.group_outcome import group_outcome
from tests.faults.world import (
    KEPT,
    Found,
    Item,
    Op,
    World,
    group_writes,
    world_from_json,
    world_to_json,
)
from tests.faults.write_log import Entry

BEFORE = World(volumes={"v": Item((2, 2, 2))}, snapshots={"s": Item((1, 1))})
REVERT = Op("revert for good", "v", source="s")


def found(*blocks: int) -> Found:
    return Found({"v": Item(blocks)}, BEFORE.snapshots)


def test_revert_cut_short_has_the_old_bytes_or_the_new_and_never_both() -> None:
    allowed = [BEFORE, BEFORE.after(REVERT)]
    assert found(2, 2, 2).difference(allowed) is None
    assert found(1, 1, 0).difference(allowed) is None
    assert found(1, 2, 2).difference(allowed) == "volume v: block 1 is of generation 2, expected 1"


def test_write_cut_short_has_each_block_old_or_new() -> None:
    allowed = [BEFORE, BEFORE.after(Op("write", "v", start=1, end=3, generation=7))]
    assert found(2, 7, 2).difference(allowed, "v") is None
    assert found(2, 7, 2).difference(allowed) is not None
    assert found(7, 7, 2).difference(allowed, "v") is not None


def test_what_is_missing_or_left_over_is_a_difference() -> None:
    for world in (
        replace(BEFORE, volumes={}),
        replace(BEFORE, snapshots={**BEFORE.snapshots, "more": Item((1,))}),
        replace(BEFORE, volumes={"v": Item((2, 2))}),
        replace(BEFORE, volumes={"v": Item((2, 2, 2), in_trash=True)}),
    ):
        assert found(2, 2, 2).difference([world]) is not None


def test_world_after_each_verb_goes_through_json() -> None:
    world = World()
    for op in (
        Op("create", "v", blocks=4),
        Op("write", "v", start=1, end=3, generation=1),
        Op("snapshot", "s", source="v"),
        Op("grow", "v", blocks=6),
        Op("revert", "v", source="s"),
        Op("group", "g", source="v", end=0),
        Op("delete snapshot", "g-1"),
        Op("clone", "c", source="s", blocks=5),
        Op("export", "key", source="s"),
        Op("delete snapshot", "s"),
        Op("import", "i", source="key"),
        Op("keep trash"),
        Op("delete volume", "c"),
    ):
        world = world.after(op)
    assert world_from_json(json.loads(json.dumps(world_to_json(world)))) == world
    assert world.volumes["v"].blocks == (0, 1, 1, 0, 0, 0)
    assert set(world.snapshots) == {f"v{KEPT}", "i"}
    assert world.snapshots["i"].blocks == (0, 1, 1, 0)
    assert world.volumes["c"].in_trash


PAIR = World(volumes={"v": Item((1, 1, 1)), "w": Item((2, 2, 2, 2))})
GROUP = Op("group", "g", source="v w", start=0, end=3, generation=7)


def pair(v: str, w: str, *snapshots: str) -> Found:
    volumes, taken = (
        {k: Item(tuple(map(int, blocks))) for k, blocks in items}
        for items in ((("v", v), ("w", w)), zip(("g-1", "g-2"), snapshots, strict=False))
    )
    return Found(volumes, taken)


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize(
    ("v", "w"),
    [("111", "2222"), ("711", "2222"), ("711", "7222"), ("777", "7722"), ("777", "7772")],
)
def test_group_holds_any_instant_between_two_writes(v: str, w: str, is_answered: bool) -> None:
    seen = pair("777", "7772", v, w)
    world = group_outcome(PAIR, GROUP, seen, is_answered=is_answered)
    assert world.snapshots == seen.snapshots
    assert world.parents == {"g-1": "v", "g-2": "w"}
    assert group_writes(GROUP) == 6


def test_group_cut_short_is_not_there_or_as_the_volumes_are_then() -> None:
    # The second write is lost, and not the third: nothing told the disk to keep either.
    for seen in (pair("771", "2222"), pair("771", "2222", "771", "2222")):
        world = group_outcome(PAIR, GROUP, seen, is_answered=False)
        assert world.snapshots == seen.snapshots
        assert world.volumes == seen.volumes


@pytest.mark.parametrize(
    ("seen", "is_answered"),
    [
        (pair("777", "7772", "111", "7222"), False),  # two instants
        (pair("777", "7772", "771", "2222"), True),
        (pair("777", "7772", "777", "7772"[:3]), False),
        (pair("777", "7772", "711"), False),  # a part
        (pair("777", "7772"), True),  # none, though it was answered
        (pair("771", "7772", "711", "2222"), True),  # a write that is lost
        (pair("777", "7773"), False),
    ],
)
def test_group_of_two_instants_or_a_part_of_it_is_a_difference(
    seen: Found, is_answered: bool
) -> None:
    with pytest.raises(AssertionError):
        group_outcome(PAIR, GROUP, seen, is_answered=is_answered)


def entry(*, told: str = "", is_barrier: bool = False) -> Entry:
    return Entry(0, 0 if told else 512, 0, is_barrier, told)


def test_points_are_behind_writes_after_the_start_and_know_what_was_answered() -> None:
    entries = [
        entry(),
        entry(told="start"),
        entry(told=mark(0, is_answered=False)),
        entry(),
        entry(told=mark(0, is_answered=True)),
        entry(is_barrier=True),
    ]
    assert all_points(entries) == [Point(4, 0, False, False), Point(6, 0, True, True)]


def test_chosen_points_are_of_each_operation_flushes_first_and_more_of_them_include_fewer() -> None:
    points = [Point(n, n // 50, False, n % 5 == 0) for n in range(500)]
    few, many = choose(points, 40), choose(points, 120)
    assert len(few) == 40
    assert {point.op for point in few} == set(range(10))
    assert all(point.is_barrier for point in few)
    assert set(few) < set(many)
    assert choose(points, 1000) == points
