"""How large a copy-on-write store is, becomes, and can ever have to be. Pure.

Layout of a store (Linux, dm-snap-persistent.c): a chunk of header, then areas, each a chunk of
metadata and the chunks it lists, 16 bytes each. When an area is full, the metadata of the next one
are cleared at once, so there must be room for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from blockd.domain.units import GIB

_EXCEPTION_BYTES = 16
_HEADER_CHUNKS = 1

#: Growth takes an LVM command or two; a store must have room for what is written meanwhile.
_AHEAD_S = 5.0


@dataclass(frozen=True, slots=True)
class CowSizes:
    """The policy of one class. All answers are whole extents, in bytes.

    Attributes:
        chunk_bytes: of new stores; one that is there keeps its own: see `with_chunk`.
        first_percent: of the origin, a new store.
        grow_at_percent: of the store: used beyond this, it grows.
        grow_percent: of the origin, a step of growth.
        least_bytes: no store is smaller (but one that holds all of its origin): a small one would
            be full before anybody has looked.
    """

    chunk_bytes: int
    first_percent: float
    grow_at_percent: float
    grow_percent: float
    extent_bytes: int
    least_bytes: int = GIB

    def with_chunk(self, chunk_bytes: int) -> CowSizes:
        """The same policy, for a store that was made with such chunks."""
        return replace(self, chunk_bytes=chunk_bytes)

    def extents(self, size_bytes: int) -> int:
        """Rounded up to whole extents."""
        return -(-size_bytes // self.extent_bytes) * self.extent_bytes

    def holding(self, data_bytes: int) -> int:
        """What a store needs to hold so much of its origin."""
        per_area = self.chunk_bytes // _EXCEPTION_BYTES
        chunks = -(-data_bytes // self.chunk_bytes)
        metadata_chunks = chunks // per_area + 1
        return self.extents((_HEADER_CHUNKS + metadata_chunks + chunks) * self.chunk_bytes)

    def ceiling(self, origin_bytes: int) -> int:
        """What holds all of the origin: more is never used."""
        return self.holding(origin_bytes)

    def first(self, origin_bytes: int) -> int:
        """A new store."""
        wanted = max(int(origin_bytes * self.first_percent / 100), self.least_bytes)
        return min(self.extents(wanted), self.ceiling(origin_bytes))

    def with_more(self, used_bytes: int, more_bytes: int, origin_bytes: int) -> int:
        """What a store needs that is used up to `used_bytes` and will take `more_bytes` of data."""
        per_area = self.chunk_bytes // _EXCEPTION_BYTES
        chunks = -(-more_bytes // self.chunk_bytes)
        # Its last area is begun, and the ones to come need their metadata, and one more cleared.
        needed_bytes = used_bytes + (chunks + chunks // per_area + 2) * self.chunk_bytes
        return min(self.extents(needed_bytes), self.ceiling(origin_bytes))

    def is_low(self, used_bytes: int, size_bytes: int, rate_bytes_s: float) -> bool:
        """Whether a store that fills at this rate has to grow now."""
        return (
            used_bytes >= size_bytes * self.grow_at_percent / 100
            or used_bytes + rate_bytes_s * _AHEAD_S >= size_bytes
        )

    def grown(
        self, used_bytes: int, size_bytes: int, rate_bytes_s: float, origin_bytes: int
    ) -> int:
        """The next size of a store that is low: at least an extent more, up to the ceiling."""
        step = max(
            int(origin_bytes * self.grow_percent / 100),
            int(rate_bytes_s * 2 * _AHEAD_S),
            int(used_bytes * 100 / self.grow_at_percent) - size_bytes,
            self.extent_bytes,
        )
        return min(self.extents(size_bytes + step), self.ceiling(origin_bytes))
