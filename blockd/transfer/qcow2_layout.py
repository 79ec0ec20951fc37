"""QCOW2 as it lies on disk: what the images that blockd lays out have in common.

All have 64 KiB clusters, 16-bit refcounts and version 3. Their tables are made when they are asked
for, never all at once: those of a full 10 TB disk are larger than 1 GB.

Source: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from blockd.domain.allocation import CLUSTER_BYTES, GROUP_CLUSTERS, Allocation
from blockd.domain.job import Compression

MAGIC: Final = b"QFI\xfb"
COPIED: Final = 1 << 63

#: Incompatible features.
DIRTY, CORRUPT, DATA_FILE, COMPRESSION_TYPE, EXTENDED_L2 = (1 << bit for bit in range(5))

_HEADER: Final = struct.Struct(">4s I Q I I Q I I Q Q I I Q Q Q Q I I B 7x")
_ENTRY: Final = struct.Struct(">Q")
_ENTRIES: Final = struct.Struct(f">{GROUP_CLUSTERS}Q")
_REFCOUNTS_PER_BLOCK: Final = CLUSTER_BYTES // 2
_COMPRESSION_TYPE: Final = {Compression.NONE: 0, Compression.ZLIB: 0, Compression.ZSTD: 1}


def header(
    size_bytes: int,
    *,
    l1_entries: int,
    l1_offset: int,
    refcount_table_clusters: int,
    features: int = 0,
    compression: Compression = Compression.NONE,
) -> bytes:
    """The first cluster; the refcount table follows it directly."""
    if compression is Compression.ZSTD:
        features |= COMPRESSION_TYPE
    fields = _HEADER.pack(
        *(MAGIC, 3, 0, 0, 16, size_bytes, 0, l1_entries, l1_offset),
        *(CLUSTER_BYTES, refcount_table_clusters, 0, 0, features, 0, 0),
        *(4, _HEADER.size, _COMPRESSION_TYPE[compression]),
    )
    return fields.ljust(CLUSTER_BYTES, b"\0")


def pointers(offsets: list[int]) -> bytes:
    """A cluster of table entries, one for each 8 bytes, the rest empty."""
    return _ENTRIES.pack(*offsets, *([0] * (GROUP_CLUSTERS - len(offsets))))


class Tables:
    """Everything before the data: header, refcount table and blocks, L1, L2 tables, in this order.

    Args:
        data_clusters: how many may follow, for which refcount blocks are there.
        counted: whether these have the refcount 1 already.
        l2_entries: of a group's L2 table: (place, entry) of those that are not 0.
        features, compression: for the header.

    Attributes:
        data_start_bytes: where the data begin.
    """

    def __init__(
        self,
        allocation: Allocation,
        *,
        data_clusters: int,
        counted: bool,
        l2_entries: Callable[[int], Iterable[tuple[int, int]]],
        features: int = 0,
        compression: Compression = Compression.NONE,
    ) -> None:
        self._groups = [g for g in range(allocation.group_count) if allocation.in_group(g)]
        self._number_of = {group: number for number, group in enumerate(self._groups)}
        self._l1_entries = allocation.group_count
        l1_clusters = -(-self._l1_entries // GROUP_CLUSTERS)
        blocks = tables = 0
        while True:
            head_clusters = 1 + tables + blocks + l1_clusters + len(self._groups)
            needed = -(-(head_clusters + data_clusters) // _REFCOUNTS_PER_BLOCK)
            if (needed, -(-needed // GROUP_CLUSTERS)) == (blocks, tables):
                break
            blocks, tables = needed, -(-needed // GROUP_CLUSTERS)
        self._blocks_at = 1 + tables
        self._l1_at = self._blocks_at + blocks
        self._l2_at = self._l1_at + l1_clusters
        self._blocks, self._l2_entries = blocks, l2_entries
        self._counted_clusters = head_clusters + (data_clusters if counted else 0)
        self._header = header(
            allocation.size_bytes,
            l1_entries=self._l1_entries,
            l1_offset=self._l1_at * CLUSTER_BYTES,
            refcount_table_clusters=tables,
            features=features,
            compression=compression,
        )
        self.data_start_bytes = head_clusters * CLUSTER_BYTES
        # Whoever reads in small pieces asks for the same cluster several times in a row.
        self._cluster = lru_cache(maxsize=8)(self._make_cluster)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range before `data_start_bytes`; zeros beyond it."""
        end = offset + length
        first, last = offset // CLUSTER_BYTES, -(-end // CLUSTER_BYTES)
        found = b"".join(self._cluster(number) for number in range(first, last))
        return found[offset - first * CLUSTER_BYTES :][:length]

    def _make_cluster(self, number: int) -> bytes:
        if number == 0:
            return self._header
        if number < self._blocks_at:
            first = (number - 1) * GROUP_CLUSTERS
            blocks = range(first, min(first + GROUP_CLUSTERS, self._blocks))
            return pointers([(self._blocks_at + block) * CLUSTER_BYTES for block in blocks])
        if number < self._l1_at:
            first = (number - self._blocks_at) * _REFCOUNTS_PER_BLOCK
            used = min(max(self._counted_clusters - first, 0), _REFCOUNTS_PER_BLOCK)
            return (b"\0\1" * used).ljust(CLUSTER_BYTES, b"\0")
        if number < self._l2_at:
            first = (number - self._l1_at) * GROUP_CLUSTERS
            groups = range(first, min(first + GROUP_CLUSTERS, self._l1_entries))
            return pointers([self._l1_entry(group) for group in groups])
        if number < self._l2_at + len(self._groups):
            # Most tables of a large disk are nearly empty: entry by entry.
            table = bytearray(CLUSTER_BYTES)
            for place, entry in self._l2_entries(self._groups[number - self._l2_at]):
                _ENTRY.pack_into(table, place * _ENTRY.size, entry)
            return bytes(table)
        return bytes(CLUSTER_BYTES)

    def _l1_entry(self, group: int) -> int:
        number = self._number_of.get(group)
        return 0 if number is None else COPIED | (self._l2_at + number) * CLUSTER_BYTES
