"""The images that blockd lays out itself, from the list of what is allocated.

`TargetPlan` is an image in which all has its place; with `SourceView` and `Skeleton` qemu-img sees
just what is allocated, and writes its image from front to back.
"""

from __future__ import annotations

from collections.abc import Iterator

from blockd.domain.allocation import CLUSTER_BYTES, GROUP_CLUSTERS, Allocation
from blockd.domain.job import Compression
from blockd.transfer.qcow2_layout import COPIED, DATA_FILE, Tables


class SourceView:
    """A QCOW2 whose data file is the disk itself: each allocated cluster maps to its own place.

    So qemu-img sees the holes of a block device, which the device cannot tell it (dm-thin answers
    EINVAL to SEEK_DATA).
    """

    def __init__(self, allocation: Allocation) -> None:
        self._allocation = allocation
        self._tables = Tables(
            allocation, data_clusters=0, counted=False, l2_entries=self._entries, features=DATA_FILE
        )
        self.size_bytes = self._tables.data_start_bytes

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range of the view's own file."""
        return self._tables.read(offset, length)

    def _entries(self, group: int) -> Iterator[tuple[int, int]]:
        first = group * GROUP_CLUSTERS
        for within in self._allocation.group(group):
            yield within, COPIED | (first + within) * CLUSTER_BYTES


class TargetPlan:
    """An image in which every allocated cluster has its place already, ascending.

    Attributes:
        object_bytes: the whole image.
        data_start_bytes: behind all tables; data clusters lie from here to the end.
    """

    def __init__(self, allocation: Allocation) -> None:
        self._allocation = allocation
        clusters = allocation.allocated_clusters
        self._tables = Tables(
            allocation, data_clusters=clusters, counted=True, l2_entries=self._entries
        )
        self.data_start_bytes = self._tables.data_start_bytes
        self.object_bytes = self.data_start_bytes + clusters * CLUSTER_BYTES

    def tables(self, offset: int, length: int) -> bytes:
        """The bytes of a range before `data_start_bytes`."""
        return self._tables.read(offset, length)

    def clusters(self, first_byte: int, end_byte: int) -> list[int]:
        """The clusters of the disk that lie in a range of the image, whole clusters of data."""
        first = (first_byte - self.data_start_bytes) // CLUSTER_BYTES
        count = (end_byte - first_byte) // CLUSTER_BYTES
        if count <= 0:
            return []
        found = self._allocation.clusters(self._allocation.select(first))
        return [next(found) for _ in range(count)]

    def _entries(self, group: int) -> Iterator[tuple[int, int]]:
        first = group * GROUP_CLUSTERS
        place = self.data_start_bytes + self._allocation.rank(first) * CLUSTER_BYTES
        for number, within in enumerate(self._allocation.group(group)):
            yield within, COPIED | place + number * CLUSTER_BYTES


class Skeleton:
    """An image without data that qemu-img lays out itself: compressed, or of an unknown allocation.

    Every table it will write is there already, in front: so it appends data, ascending, each byte
    once, and only what lies before `data_start_bytes` is written again and again.
    """

    def __init__(
        self, allocation: Allocation, compression: Compression, *, most_bytes: int
    ) -> None:
        """`allocation`: all that may hold data; `most_bytes`: the most data there can be."""
        self._tables = Tables(
            allocation,
            data_clusters=-(-most_bytes // CLUSTER_BYTES),
            counted=False,
            l2_entries=lambda _: (),
            compression=compression,
        )
        self.data_start_bytes = self._tables.data_start_bytes

    def tables(self, offset: int, length: int) -> bytes:
        """The bytes of a range before `data_start_bytes`."""
        return self._tables.read(offset, length)
