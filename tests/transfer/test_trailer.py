"""The trailer: what is written is read, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockd.transfer.trailer import TRAILER_BYTES, Trailer, read_trailer, write_trailer

TRAILER = Trailer("5" * 64, "snapshot", "job", 10**13, 10**13 + 512)


def test_trailer_is_read_as_it_was_written() -> None:
    tail = write_trailer(TRAILER)
    assert len(tail) == TRAILER_BYTES
    assert read_trailer(tail, TRAILER.object_bytes) == TRAILER


def test_trailer_of_another_object_is_none() -> None:
    assert read_trailer(write_trailer(TRAILER), TRAILER.object_bytes + 512) is None
    strange = write_trailer(replace(TRAILER, content_digest="no digest"))
    assert read_trailer(strange, TRAILER.object_bytes) is None


@pytest.mark.parametrize("at", range(0, TRAILER_BYTES, 7))
def test_trailer_with_any_bit_turned_is_none(at: int) -> None:
    tail = bytearray(write_trailer(TRAILER))
    tail[at] ^= 1
    assert read_trailer(bytes(tail), TRAILER.object_bytes) is None


@pytest.mark.parametrize("tail", [b"", bytes(512), b"x" * 512, b"blockd image 1\n" + bytes(497)])
def test_what_is_no_trailer_is_none(tail: bytes) -> None:
    assert read_trailer(tail, 512) is None
