"""Which parts of a disk may hold data: one bit for each cluster of 64 KiB (2 MiB for 1 TiB)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

CLUSTER_BYTES: Final = 65536

#: Clusters that one L2 table of a QCOW2 with such clusters describes, and that are counted as one.
GROUP_CLUSTERS: Final = CLUSTER_BYTES // 8
_GROUP_BYTES: Final = GROUP_CLUSTERS // 8


class Allocation:
    """The clusters of a disk's first `size_bytes` that may hold data; all others read as zeros.

    The last cluster may lie partly beyond the size. `rank` and `select` count allocated clusters.
    """

    def __init__(self, size_bytes: int) -> None:
        """Nothing is allocated at first."""
        self.size_bytes = size_bytes
        self.cluster_count = -(-size_bytes // CLUSTER_BYTES)
        groups = -(-self.cluster_count // GROUP_CLUSTERS)
        self._bits = bytearray(groups * _GROUP_BYTES)
        self._before: list[int] | None = None

    @classmethod
    def full(cls, size_bytes: int) -> Allocation:
        """All of it."""
        allocation = cls(size_bytes)
        allocation.add(0, size_bytes)
        return allocation

    def add(self, offset_bytes: int, length_bytes: int) -> None:
        """Every cluster that the range touches; what lies beyond the size is dropped."""
        end_bytes = min(offset_bytes + length_bytes, self.size_bytes)
        if length_bytes <= 0 or offset_bytes >= end_bytes:
            return
        first, end = offset_bytes // CLUSTER_BYTES, -(-end_bytes // CLUSTER_BYTES)
        self._before = None
        first_byte, end_byte = -(-first // 8), end // 8
        if first_byte > end_byte:  # all within one byte
            self._bits[end_byte] |= _mask(first % 8, end % 8)
            return
        if first % 8:
            self._bits[first_byte - 1] |= _mask(first % 8, 8)
        self._bits[first_byte:end_byte] = b"\xff" * (end_byte - first_byte)
        if end % 8:
            self._bits[end_byte] |= _mask(0, end % 8)

    def __contains__(self, cluster: int) -> bool:
        return bool(self._bits[cluster // 8] >> (cluster % 8) & 1)

    @property
    def allocated_clusters(self) -> int:
        """How many there are."""
        return self._counts()[-1]

    @property
    def allocated_bytes(self) -> int:
        """In bytes of the disk: the last cluster counts as far as the size reaches."""
        beyond = self.cluster_count * CLUSTER_BYTES - self.size_bytes
        has_last = self.cluster_count > 0 and self.cluster_count - 1 in self
        return self.allocated_clusters * CLUSTER_BYTES - (beyond if has_last else 0)

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first cluster, how many), ascending, each as long as can be."""
        first = end = 0
        for begin, count in self._pieces():
            if begin == end:
                end += count
                continue
            if end > first:
                yield first, end - first
            first, end = begin, begin + count
        if end > first:
            yield first, end - first

    def clusters(self, first: int = 0, end: int | None = None) -> Iterator[int]:
        """Those from `first` up to `end`, ascending."""
        end = self.cluster_count if end is None else min(end, self.cluster_count)
        byte = first // 8
        last = -(-end // 8)
        while byte < last:
            value = self._bits[byte]
            if not value:
                following = self._next_used(byte)
                if following >= last:
                    return
                byte = following
                continue
            for bit in _BITS_OF[value]:
                cluster = byte * 8 + bit
                if first <= cluster < end:
                    yield cluster
            byte += 1

    def group(self, number: int) -> list[int]:
        """The allocated clusters of one group, as numbers within it."""
        return [cluster - number * GROUP_CLUSTERS for cluster in self._clusters_of(number)]

    @property
    def group_count(self) -> int:
        """How many groups of `GROUP_CLUSTERS` the disk has."""
        return len(self._bits) // _GROUP_BYTES

    def in_group(self, number: int) -> int:
        """How many clusters of a group are allocated."""
        counts = self._counts()
        return counts[number + 1] - counts[number]

    def rank(self, cluster: int) -> int:
        """How many allocated clusters lie before this one."""
        group, within = divmod(cluster, GROUP_CLUSTERS)
        start = group * _GROUP_BYTES
        bits = int.from_bytes(self._bits[start : start + -(-within // 8)], "little")
        return self._counts()[group] + (bits & ((1 << within) - 1)).bit_count()

    def select(self, rank: int) -> int:
        """The allocated cluster before which `rank` others lie.

        Raises:
            IndexError: there are no more than `rank`.
        """
        counts = self._counts()
        if not 0 <= rank < counts[-1]:
            raise IndexError(rank)
        group = bisect_right(counts, rank) - 1
        left = rank - counts[group]
        start = group * _GROUP_BYTES
        for byte in range(start, start + _GROUP_BYTES):
            ones = self._bits[byte].bit_count()
            if left < ones:
                return byte * 8 + _BITS_OF[self._bits[byte]][left]
            left -= ones
        raise IndexError(rank)

    def _clusters_of(self, group: int) -> Iterator[int]:
        return self.clusters(group * GROUP_CLUSTERS, (group + 1) * GROUP_CLUSTERS)

    def _counts(self) -> list[int]:
        """Allocated clusters before each group, and in all."""
        if self._before is None:
            used = (
                int.from_bytes(self._bits[at : at + _GROUP_BYTES], "little").bit_count()
                for at in range(0, len(self._bits), _GROUP_BYTES)
            )
            self._before = list(accumulate(used, initial=0))
        return self._before

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Runs as they lie in bytes; neighbours may touch."""
        byte, end = 0, len(self._bits)
        while (byte := self._next_used(byte)) < end:
            value = self._bits[byte]
            if value == 0xFF:
                following = byte + 1
                while following < end and self._bits[following] == 0xFF:
                    following += 1
                yield byte * 8, (following - byte) * 8
                byte = following
                continue
            for bit in _BITS_OF[value]:
                yield byte * 8 + bit, 1
            byte += 1

    def _next_used(self, byte: int) -> int:
        """The first byte from `byte` on that is not 0, or the end."""
        while self._bits.startswith(_EMPTY, byte):
            byte += len(_EMPTY)
        found = _USED.search(self._bits, byte)
        return len(self._bits) if found is None else found.start()


_EMPTY: Final = bytes(512)
_USED: Final = re.compile(rb"[^\0]")
_BITS_OF: Final = tuple(tuple(bit for bit in range(8) if value >> bit & 1) for value in range(256))


def _mask(first: int, end: int) -> int:
    """Bits `first` to `end` - 1 of a byte."""
    return (1 << end) - (1 << first)
