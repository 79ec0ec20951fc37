"""Copy-on-write stores: the kernel's status lines, and how large a store must be."""

from __future__ import annotations

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.units import GIB, MIB
from blockd.storage.cow_sizes import CowSizes
from blockd.storage.cow_status import CowStatus, parse_chunk_bytes, parse_cow_status

SIZES = CowSizes(4096, 10.0, 70.0, 10.0, 4 * MIB)


@pytest.mark.parametrize(
    ("params", "status"),
    [  # as Linux 6.1 wrote them in the lab
        ("16/16384 16", CowStatus(8192, 8 * MIB, 8192)),
        ("822416/1056768 3216", CowStatus(822416 * 512, 516 * MIB, 3216 * 512)),
        ("Invalid", CowStatus(0, 0, 0, "Invalid")),
        ("Overflow", CowStatus(0, 0, 0, "Overflow")),
        ("Merge failed", CowStatus(0, 0, 0, "Merge failed")),
    ],
)
def test_status_is_read(params: str, status: CowStatus) -> None:
    assert parse_cow_status(params) == status


def test_nothing_but_metadata_is_merged() -> None:
    assert parse_cow_status("16/1064960 16").data_bytes == 0
    assert parse_cow_status("822416/1056768 3216").data_bytes == 400 * MIB


@pytest.mark.parametrize("params", ["", "Unknown", "16/16384", "16 16", "a/b c"])
def test_what_is_no_status_is_an_error(params: str) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        parse_cow_status(params)


@pytest.mark.parametrize(
    ("params", "chunk_bytes"),
    [("254:1 254:2 P 8", 4096), ("254:1 254:2 PO 128 1 discard_zeroes_cow", 65536)],
)
def test_chunk_of_a_store_is_read_from_its_table(params: str, chunk_bytes: int) -> None:
    assert parse_chunk_bytes(params) == chunk_bytes


@pytest.mark.parametrize("params", ["", "254:1", "254:1 254:2 P", "254:1 254:2 P x", "a b P 0"])
def test_table_without_a_chunk_is_an_error(params: str) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        parse_chunk_bytes(params)


@pytest.mark.parametrize(
    ("origin_bytes", "ceiling_bytes"),
    [  # the first two as LVM 2.03.16 cut a larger wish ("maximum usable size")
        (64 * MIB, 68 * MIB),
        (512 * MIB, 516 * MIB),
        (600 * MIB, 604 * MIB),
        (4 * MIB, 8 * MIB),
    ],
)
def test_ceiling_is_what_lvm_takes_it_to_be(origin_bytes: int, ceiling_bytes: int) -> None:
    assert SIZES.ceiling(origin_bytes) == ceiling_bytes


def test_ceiling_has_room_for_the_metadata_that_follow_a_full_area() -> None:
    """256 exceptions fill an area of 4 KiB; the kernel then clears the next one's metadata."""
    exact = CowSizes(4096, 10, 70, 10, extent_bytes=4096)
    assert exact.holding(255 * 4096) == (1 + 1 + 255) * 4096
    assert exact.holding(256 * 4096) == (1 + 2 + 256) * 4096


def test_first_store_is_a_share_but_never_tiny_nor_more_than_all() -> None:
    assert SIZES.first(20 * GIB) == 2 * GIB
    assert SIZES.first(2 * GIB) == GIB
    assert SIZES.first(100 * MIB) == SIZES.ceiling(100 * MIB)
    assert SIZES.first(8 * MIB) == 12 * MIB


def test_store_grows_in_whole_extents_up_to_its_ceiling() -> None:
    size = SIZES.grown(70 * MIB, 100 * MIB, 0, GIB)
    assert size == 204 * MIB
    assert SIZES.grown(900 * MIB, 960 * MIB, 500 * MIB, GIB) == SIZES.ceiling(GIB)
    fast = SIZES.grown(70 * MIB, 100 * MIB, 50 * MIB, 10 * GIB)
    assert fast >= 600 * MIB  # ten seconds of it


def test_store_is_low_by_its_use_or_by_its_rate() -> None:
    assert not SIZES.is_low(69 * MIB, 100 * MIB, 0)
    assert SIZES.is_low(70 * MIB, 100 * MIB, 0)
    assert SIZES.is_low(10 * MIB, 100 * MIB, 20 * MIB)


@pytest.mark.parametrize("more_chunks", [0, 1, 255, 256, 257, 5000])
@pytest.mark.parametrize("used_chunks", [2, 3, 257, 259])
def test_reserved_store_takes_what_it_is_reserved_for(used_chunks: int, more_chunks: int) -> None:
    """Played through as the kernel allocates: dm-snap-persistent.c, prepare_exception."""
    exact = CowSizes(4096, 10, 70, 10, extent_bytes=4096)
    chunks = exact.with_more(used_chunks * 4096, more_chunks * 4096, GIB) // 4096
    next_free, stride = used_chunks, 257
    for _ in range(more_chunks):
        assert next_free < chunks
        next_free += 1
        if next_free % stride == 1:
            assert next_free < chunks, "the next area's metadata are cleared"
            next_free += 1
