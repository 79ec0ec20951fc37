"""The content digest: the same for the same bytes, however they are laid out.

SHA-256 over, for each 64 KiB cluster that is not all zero, ascending: its index as 8 bytes
big-endian, and its own SHA-256. A last cluster that the size cuts is filled up with zeros, so a
larger size leaves the digest unchanged. It costs what is allocated, not the virtual size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from blockd.domain.allocation import CLUSTER_BYTES

_ZEROS: Final = bytes(CLUSTER_BYTES)
_ZERO_VIEW: Final = memoryview(_ZEROS)

Buffer = bytes | bytearray | memoryview


def is_zero(data: Buffer) -> bool:
    """Whether there is nothing but zeros; looks no further than the first other byte.

    Compares as bytes: a memoryview compared with bytes is 150 times slower (measured).
    """
    view = memoryview(data).cast("B") if not isinstance(data, memoryview) else data
    for at in range(0, len(view), CLUSTER_BYTES):
        piece = view[at : at + CLUSTER_BYTES]
        if piece[0] or piece[-1] or piece.tobytes() != _ZEROS[: len(piece)]:
            return False
    return True


def cluster_sums(data: Buffer) -> list[bytes | None]:
    """The SHA-256 of each cluster in a row, None of those that are all zero.

    Only the last may be short: it is filled up with zeros.
    """
    view = memoryview(data)
    sums: list[bytes | None] = []
    for at in range(0, len(view), CLUSTER_BYTES):
        piece = view[at : at + CLUSTER_BYTES]
        # A first byte that is not 0 settles most clusters of data without a look at the rest.
        if not piece[0] and is_zero(piece):
            sums.append(None)
            continue
        one = hashlib.sha256(piece)
        if len(piece) < CLUSTER_BYTES:
            one.update(_ZERO_VIEW[len(piece) :])
        sums.append(one.digest())
    return sums


class ContentDigest:
    """A digest in the making; clusters come in ascending order."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._next = 0

    def add(self, first_cluster: int, data: Buffer) -> None:
        """The bytes of one or more clusters in a row; only the last may be short.

        Meant for a thread: hashing lets others run.

        Raises:
            ValueError: they are not behind those that came before.
        """
        self.add_sums(first_cluster, cluster_sums(data))

    def add_sums(self, first_cluster: int, sums: Sequence[bytes | None]) -> None:
        """The same, of clusters whose sums were made before (`cluster_sums`), in any thread."""
        if first_cluster < self._next:
            raise ValueError(f"cluster {first_cluster} comes after cluster {self._next - 1}")
        for cluster, one in enumerate(sums, first_cluster):
            if one is not None:
                self._sum.update(cluster.to_bytes(8, "big") + one)
        self._next = first_cluster + len(sums)

    def copy(self) -> ContentDigest:
        """One that goes on from here by itself."""
        other = ContentDigest()
        other._sum, other._next = self._sum.copy(), self._next
        return other

    def become(self, other: ContentDigest) -> None:
        """Go on from where `other` is."""
        self._sum, self._next = other._sum, other._next

    def hex(self) -> str:
        """Of all that was added so far: 64 hexadecimal digits."""
        return self._sum.hexdigest()
