"""The content digest: the same for the same bytes, however they are laid out.

SHA-256 over, for each 64 KiB cluster that is not all zero, ascending: its index as 8 bytes
big-endian, and its own SHA-256. A last cluster that the size cuts is filled up with zeros, so a
larger size leaves the digest unchanged. It costs what is allocated, not the virtual size.
"""

from __future__ import annotations

import hashlib
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
        if first_cluster < self._next:
            raise ValueError(f"cluster {first_cluster} comes after cluster {self._next - 1}")
        view = memoryview(data)
        cluster = first_cluster
        for at in range(0, len(view), CLUSTER_BYTES):
            piece = view[at : at + CLUSTER_BYTES]
            # A first byte that is not 0 settles most clusters of data without a look at the rest.
            if piece[0] or not is_zero(piece):
                one = hashlib.sha256(piece)
                if len(piece) < CLUSTER_BYTES:
                    one.update(_ZERO_VIEW[len(piece) :])
                self._sum.update(cluster.to_bytes(8, "big") + one.digest())
            cluster += 1
        self._next = cluster

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
