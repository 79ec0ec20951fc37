"""When a pool is extended, by how much, and what is said when it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockd.domain.pool import PoolUse
from blockd.domain.pool_growth import GrowthBounds, PartBounds, growth
from blockd.domain.units import GIB, MIB

EXTENT = 4 * MIB
POOL = PoolUse(
    storage_class="sbs",
    name="vg/pool",
    size_bytes=100 * GIB,
    used_bytes=10 * GIB,
    metadata_size_bytes=GIB,
    metadata_used_bytes=100 * MIB,
    mode="rw",
    needs_check=False,
    group_free_bytes=500 * GIB,
    extent_bytes=EXTENT,
)
BOUNDS = GrowthBounds()


def test_pool_with_room_needs_nothing_and_could_grow() -> None:
    able = growth(POOL, BOUNDS)
    assert not able.is_due
    assert not able.is_stuck
    assert able.obstacle == ""
    assert able.addable_bytes == 499 * GIB  # less a step of metadata, twice


def test_data_at_the_low_water_mark_grow_by_the_step() -> None:
    able = growth(replace(POOL, used_bytes=80 * GIB), BOUNDS)
    assert able.data.due_bytes == 20 * GIB
    assert able.metadata.due_bytes == 0
    assert growth(replace(POOL, used_bytes=80 * GIB - 1), BOUNDS).data.due_bytes == 0


def test_full_pool_with_a_small_step_grows_until_it_is_below_the_mark_again() -> None:
    bounds = GrowthBounds(PartBounds(80.0, 1.0))
    able = growth(replace(POOL, used_bytes=100 * GIB), bounds)
    assert (100 * GIB + able.data.due_bytes) * 80 > 100 * GIB * 100
    assert able.data.due_bytes % EXTENT == 0


def test_metadata_grow_earlier_and_cost_twice() -> None:
    low = replace(POOL, metadata_used_bytes=720 * MIB, used_bytes=80 * GIB)
    able = growth(replace(low, group_free_bytes=GIB + 40 * MIB), BOUNDS)
    assert able.metadata.due_bytes == 512 * MIB
    assert able.data.due_bytes == 40 * MIB  # what metadata and their spare leave


def test_step_is_what_there_is_in_whole_extents() -> None:
    able = growth(replace(POOL, used_bytes=90 * GIB, group_free_bytes=2 * GIB + EXTENT + 1), BOUNDS)
    assert able.data.due_bytes == GIB + EXTENT
    assert able.addable_bytes == GIB + EXTENT


@pytest.mark.parametrize(
    ("bounds", "free", "data", "metadata"),
    [
        (GrowthBounds(PartBounds(80, 0)), 50 * GIB, "extend_percent is 0", ""),
        (
            GrowthBounds(PartBounds(80, 20, 100 * GIB)),
            50 * GIB,
            "extend_to is reached: 100 GiB",
            "",
        ),
        (
            GrowthBounds(metadata=PartBounds(70, 50, GIB)),
            50 * GIB,
            "",
            "metadata_extend_to is reached: 1 GiB",
        ),
        (
            GrowthBounds(metadata=PartBounds(70, 0)),
            50 * GIB,
            "",
            "metadata_extend_percent is 0",
        ),
        (BOUNDS, EXTENT - 1, "volume group vg has 4.00 MiB free", "each step takes its size twice"),
        (BOUNDS, GIB, "1 GiB of it for metadata", ""),
    ],
)
def test_obstacle_names_what_stands_in_the_way(
    bounds: GrowthBounds, free: int, data: str, metadata: str
) -> None:
    able = growth(replace(POOL, group_free_bytes=free), bounds)
    for part, told in ((able.data, data), (able.metadata, metadata)):
        assert told in part.obstacle
        assert bool(told) == bool(part.obstacle) == (part.step_bytes == 0)
    assert bool(able.addable_bytes) == (not data)
    assert not able.is_stuck  # nothing is due
    low = growth(replace(POOL, group_free_bytes=free, used_bytes=90 * GIB), bounds)
    assert low.is_stuck == bool(data)


def test_ceiling_is_kept() -> None:
    bounds = GrowthBounds(PartBounds(80, 50, 110 * GIB))
    able = growth(replace(POOL, used_bytes=99 * GIB), bounds)
    assert (able.data.due_bytes, able.addable_bytes) == (10 * GIB, 10 * GIB)


def test_metadata_never_pass_what_lvm_makes() -> None:
    big = replace(POOL, metadata_size_bytes=15 * GIB, metadata_used_bytes=14 * GIB)
    assert growth(big, BOUNDS).metadata.due_bytes == 832 * MIB
    most = replace(big, metadata_size_bytes=15 * GIB + 832 * MIB)
    assert growth(most, BOUNDS).metadata.is_stuck


def test_pool_that_is_not_active_is_not_low() -> None:
    gone = replace(POOL, mode="inactive", size_bytes=0, used_bytes=0, metadata_size_bytes=0)
    assert not growth(replace(gone, metadata_used_bytes=0), BOUNDS).is_due
