"""The content digest, against its definition written out plainly."""

from __future__ import annotations

import hashlib
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.transfer.digest import ContentDigest, ScatteredDigest, data_ranges, is_zero

KINDS = st.lists(st.sampled_from("zdp"), max_size=12)
PLACES = st.integers(0, CLUSTER_BYTES - 1)


def _cluster(kind: str, place: int) -> bytes:
    """Zeros, noise, or one byte among zeros."""
    if kind == "d":
        return os.urandom(CLUSTER_BYTES)
    data = bytearray(CLUSTER_BYTES)
    if kind == "p":
        data[place] = 7
    return bytes(data)


def _plain(data: bytes) -> str:
    total = hashlib.sha256()
    for index in range(-(-len(data) // CLUSTER_BYTES)):
        cluster = data[index * CLUSTER_BYTES : (index + 1) * CLUSTER_BYTES]
        cluster = cluster.ljust(CLUSTER_BYTES, b"\0")
        if any(cluster):
            total.update(index.to_bytes(8, "big") + hashlib.sha256(cluster).digest())
    return total.hexdigest()


@given(KINDS, PLACES, st.integers(0, CLUSTER_BYTES - 1))
def test_digest_is_what_its_definition_says_however_it_is_added(
    kinds: list[str], place: int, short: int
) -> None:
    data = b"".join(_cluster(kind, place) for kind in kinds)
    data = data[: max(len(data) - short, 0)]
    at_once, one_by_one = ContentDigest(), ContentDigest()
    at_once.add(0, data)
    for index in range(-(-len(data) // CLUSTER_BYTES)):
        piece = data[index * CLUSTER_BYTES : (index + 1) * CLUSTER_BYTES]
        if any(piece):  # what is not allocated is never read
            one_by_one.add(index, memoryview(piece))
    assert at_once.hex() == one_by_one.hex() == _plain(data)
    at_once.add(len(kinds) + 5, bytes(3 * CLUSTER_BYTES))  # a larger size changes nothing
    assert at_once.hex() == _plain(data)


def test_clusters_out_of_order_are_refused() -> None:
    digest = ContentDigest()
    digest.add(5, b"x")
    with pytest.raises(ValueError, match="comes after"):
        digest.add(5, b"y")


@given(st.integers(0, 3 * CLUSTER_BYTES), st.data())
def test_is_zero_sees_a_single_byte(length: int, data: st.DataObject) -> None:
    buffer = bytearray(length)
    assert is_zero(buffer)
    if length:
        buffer[data.draw(st.integers(0, length - 1))] = 1
        assert not is_zero(memoryview(buffer))


def test_clusters_in_any_order_give_the_digest_of_the_disk() -> None:
    chance = random.Random(6)
    clusters = {number: os.urandom(CLUSTER_BYTES) for number in chance.sample(range(900), 300)}
    clusters[7] = bytes(CLUSTER_BYTES)
    ascending = ContentDigest()
    for number in sorted(clusters):
        ascending.add(number, clusters[number])
    numbers = list(clusters)
    for _ in range(5):
        chance.shuffle(numbers)
        scattered = ScatteredDigest((number, 1) for number in sorted(clusters))
        for number in numbers:
            scattered.add(number, clusters[number])
        assert scattered.hex() == ascending.hex()


def test_extents_in_pieces_give_the_digest_of_the_disk() -> None:
    data = os.urandom(8 * CLUSTER_BYTES)
    ascending, scattered = ContentDigest(), ScatteredDigest([(3, 4), (7, 2), (20, 2)])
    for at in (3, 7, 20):
        ascending.add(at, data[: (4 if at == 3 else 2) * CLUSTER_BYTES])
    scattered.add(20, data[: 2 * CLUSTER_BYTES])
    # The end of one extent and the next one in one piece.
    scattered.add(5, data[2 * CLUSTER_BYTES : 4 * CLUSTER_BYTES] + data[: 2 * CLUSTER_BYTES])
    scattered.add(3, data[: 2 * CLUSTER_BYTES])
    assert scattered.hex() == ascending.hex()


def test_cluster_that_did_not_come_or_came_twice_is_an_error() -> None:
    digest = ScatteredDigest([(3, 4)])
    digest.add(5, bytes(2 * CLUSTER_BYTES))
    with pytest.raises(ValueError, match="cluster 5 comes twice"):
        digest.add(5, bytes(CLUSTER_BYTES))
    with pytest.raises(ValueError, match="cluster 3 did not come"):
        digest.hex()
    digest.add(3, bytes(2 * CLUSTER_BYTES))
    with pytest.raises(ValueError, match="cluster 4 comes twice"):
        digest.add(4, bytes(CLUSTER_BYTES))
    assert digest.hex() == ContentDigest().hex()


@pytest.mark.parametrize(
    ("offset", "data", "ranges"),
    [
        (0, b"", []),
        (0, bytes(3 * CLUSTER_BYTES), []),
        (
            0,
            bytes(CLUSTER_BYTES) + b"x" + bytes(CLUSTER_BYTES),
            [(CLUSTER_BYTES, 2 * CLUSTER_BYTES)],
        ),
        (CLUSTER_BYTES - 10, bytes(9) + b"x" + bytes(100), [(0, 10)]),
        (CLUSTER_BYTES - 10, bytes(10) + b"x" * 100, [(10, 110)]),
        (512, b"x" * 2 * CLUSTER_BYTES, [(0, 2 * CLUSTER_BYTES)]),
        (
            0,
            b"x" + bytes(2 * CLUSTER_BYTES - 1) + b"x",
            [(0, CLUSTER_BYTES), (2 * CLUSTER_BYTES, 2 * CLUSTER_BYTES + 1)],
        ),
    ],
)
def test_clusters_of_zeros_are_left_out(
    offset: int, data: bytes, ranges: list[tuple[int, int]]
) -> None:
    assert data_ranges(offset, memoryview(data)) == ranges
