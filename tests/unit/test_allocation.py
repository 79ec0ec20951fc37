"""The list of allocated clusters, against a plain set of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blockd.domain.allocation import CLUSTER_BYTES, GROUP_CLUSTERS, Allocation

SIZES = st.integers(1, 3 * GROUP_CLUSTERS * CLUSTER_BYTES)
RANGES = st.lists(
    st.tuples(
        st.integers(0, 3 * GROUP_CLUSTERS * CLUSTER_BYTES), st.integers(-1, 40 * CLUSTER_BYTES)
    ),
    max_size=12,
)


def _both(size: int, ranges: list[tuple[int, int]]) -> tuple[Allocation, list[int]]:
    allocation, wanted = Allocation(size), set[int]()
    for offset, length in ranges:
        allocation.add(offset, length)
        end = min(offset + length, size)
        if length > 0 and offset < end:
            wanted |= set(range(offset // CLUSTER_BYTES, -(-end // CLUSTER_BYTES)))
    return allocation, sorted(wanted)


@given(SIZES, RANGES)
def test_clusters_runs_and_groups_are_those_that_were_added(
    size: int, ranges: list[tuple[int, int]]
) -> None:
    allocation, wanted = _both(size, ranges)
    assert list(allocation.clusters()) == wanted
    assert allocation.allocated_clusters == len(wanted)
    runs = list(allocation.runs())
    assert [c for first, count in runs for c in range(first, first + count)] == wanted
    assert all(one[0] + one[1] < other[0] for one, other in pairwise(runs))
    assert [
        group * GROUP_CLUSTERS + within
        for group in range(allocation.group_count)
        for within in allocation.group(group)
    ] == wanted


@given(SIZES, RANGES)
def test_rank_and_select_are_inverse(size: int, ranges: list[tuple[int, int]]) -> None:
    allocation, wanted = _both(size, ranges)
    for rank, cluster in enumerate(wanted[:200]):
        assert allocation.rank(cluster) == rank
        assert allocation.select(rank) == cluster
        assert cluster in allocation


def test_full_disk_is_one_run_and_its_bytes_are_the_size() -> None:
    allocation = Allocation.full(10**12 + 512)
    assert list(allocation.runs()) == [(0, -(-(10**12 + 512) // CLUSTER_BYTES))]
    assert allocation.allocated_bytes == 10**12 + 512
