"""Ranges of bytes on a grid: clusters, parts."""

from __future__ import annotations

from collections.abc import Iterator


def split(offset: int, length: int, unit_bytes: int) -> Iterator[tuple[int, int, int]]:
    """A range, cut where units meet: (unit from 0, offset in it, bytes) of each piece."""
    while length:
        number, within = divmod(offset, unit_bytes)
        piece = min(length, unit_bytes - within)
        yield number, within, piece
        offset, length = offset + piece, length - piece
