"""Which parts of a piece are written, and which are left to BLKZEROOUT."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blockd.storage.zero_fill import _BLOCK_BYTES, _GAP_BYTES, _runs

BLOCKS = 64


@given(st.sets(st.integers(0, BLOCKS - 1)), st.integers(0, 7))
def test_runs_cover_all_that_is_not_zero_and_no_long_gap(full: set[int], sectors: int) -> None:
    data = bytearray(BLOCKS * _BLOCK_BYTES + sectors * 512)
    for number in full:
        data[number * _BLOCK_BYTES + number * 7] = 1
    runs = _runs(bytes(data))
    assert all(any(begin <= at < begin + count for begin, count in runs) for at in _ones(data))
    for (begin, count), (following, _) in pairwise(runs):
        assert following - (begin + count) > _GAP_BYTES
    for begin, count in runs:
        assert 1 in data[begin : begin + _BLOCK_BYTES]
        assert 1 in data[begin + count - _BLOCK_BYTES : begin + count]


def test_end_shorter_than_a_block_is_seen() -> None:
    assert _runs(bytes(4096) + b"\0" * 511 + b"x") == [(4096, 512)]
    assert _runs(bytes(4096 + 512)) == []


def _ones(data: bytearray) -> list[int]:
    return [at for at, value in enumerate(data) if value]
