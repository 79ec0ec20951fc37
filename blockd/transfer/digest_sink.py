"""Where an image goes that is only checked: data go into the digest alone."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence
from functools import partial

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.errors import StorageError
from blockd.transfer.digest import ContentDigest
from blockd.transfer.extent_copy import Piece
from blockd.transfer.nbd import Buffer


class DigestSink:
    """A raw disk that forgets what is written to it, through NBD (`nbd.Export`), or in pieces."""

    read_only = False

    def __init__(self, size_bytes: int, digest: ContentDigest | None = None) -> None:
        """`digest`: one that takes clusters in the order in which they come; None: ascending."""
        self.size_bytes = -(-size_bytes // 512) * 512
        self._digest = ContentDigest() if digest is None else digest
        self._taking: asyncio.Future[None] | None = None
        self._cluster = bytearray(CLUSTER_BYTES)
        self._number = 0  # of the cluster being put together
        self._is_begun = False
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
        await asyncio.to_thread(self._take, offset, memoryview(self._data)[:length])
        self._at = offset + length

    async def zero(self, offset: int, length: int) -> None:
        """What is not written is zeros."""

    async def flush(self) -> None:
        """Nothing to be done."""

    async def put(self, buffer: mmap.mmap, pieces: Sequence[Piece]) -> asyncio.Future[None]:
        """Adds pieces of a buffer; those that share a cluster of the digest come ascending.

        Returns:
            What ends when the buffer is free again.
        """
        if self._taking is not None:
            await asyncio.shield(self._taking)
        work = partial(self._take_pieces, buffer, pieces)
        self._taking = asyncio.get_running_loop().run_in_executor(None, work)
        return self._taking

    async def finish(self) -> str:
        """After a good end: the content digest of all that came."""
        if self._taking is not None:
            await self._taking
        self._close_cluster()
        return self._digest.hex()

    def _take_pieces(self, buffer: mmap.mmap, pieces: Sequence[Piece]) -> None:
        with memoryview(buffer) as view:
            for piece in pieces:
                with view[piece.at : piece.at + piece.length] as data:
                    self._take(piece.disk_offset, data)

    def _take(self, offset: int, data: memoryview) -> None:
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
                self._is_begun = True
            offset, data = offset + piece, data[piece:]

    def _close_cluster(self) -> None:
        """A cluster of which the rest, if any, is zeros."""
        if self._is_begun:
            self._digest.add(self._number, bytes(self._cluster))
            self._cluster[:] = bytes(CLUSTER_BYTES)
            self._is_begun = False
