"""The content digest, against its definition written out plainly."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.transfer.digest import ContentDigest, is_zero

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
