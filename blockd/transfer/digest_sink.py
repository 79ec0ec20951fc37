"""What qemu-img writes into when an image is only checked: data go into the digest alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.errors import StorageError
from blockd.transfer.digest import ContentDigest
from blockd.transfer.nbd import Buffer


class DigestSink:
    """An NBD export (`nbd.Export`) of a raw disk that forgets what is written to it."""

    read_only = False

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // 512) * 512
        self._digest = ContentDigest()
        self._cluster = bytearray(CLUSTER_BYTES)
        self._number = 0  # of the cluster being put together
        self._at = 0
        self._data = bytearray()

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """Zeros: whatever asks has not written there."""
        if offset < self._at:
            raise StorageError("qemu-img reads what it writes: the image cannot be checked")
        return [bytes(length)]

    async def place(self, offset: int, length: int) -> Sequence[memoryview]:
        """Room for one write, behind those before it."""
        if offset < self._at:
            raise StorageError(f"qemu-img wrote at {offset} out of its turn: cannot be checked")
        if len(self._data) < length:
            self._data = bytearray(length)
        return [memoryview(self._data)[:length]]

    async def written(self, offset: int, length: int) -> None:
        """Adds the clusters that are whole."""
        await asyncio.to_thread(self._take, offset, length)
        self._at = offset + length

    async def zero(self, offset: int, length: int) -> None:
        """What is not written is zeros."""

    async def flush(self) -> None:
        """Nothing to be done."""

    def hex(self) -> str:
        """After qemu-img's good end."""
        self._close_cluster()
        return self._digest.hex()

    def _take(self, offset: int, length: int) -> None:
        data = memoryview(self._data)[:length]
        while data:
            number, within = divmod(offset, CLUSTER_BYTES)
            if number != self._number:
                self._close_cluster()
                self._number = number
            whole = len(data) // CLUSTER_BYTES * CLUSTER_BYTES
            if within == 0 and whole:
                self._digest.add(number, data[:whole])
                piece = whole
                self._number = number + whole // CLUSTER_BYTES
            else:
                piece = min(len(data), CLUSTER_BYTES - within)
                self._cluster[within : within + piece] = data[:piece]
            offset, data = offset + piece, data[piece:]

    def _close_cluster(self) -> None:
        """A cluster of which the rest, if any, is zeros."""
        if any(self._cluster):
            self._digest.add(self._number, bytes(self._cluster))
            self._cluster = bytearray(CLUSTER_BYTES)
