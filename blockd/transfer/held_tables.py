"""The tables of an image while qemu-img still writes to them: packed in memory, or on scratch.

Most are nearly empty: on a disk of 1 TiB with a file here and there, each 64 KiB of an L2 table
name a handful of clusters. zlib makes some hundred bytes of such a one.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.errors import StorageError
from blockd.domain.units import format_size
from blockd.transfer.grid import split
from blockd.transfer.threads import threads

#: Packed tables that stay in memory: those of 300 GiB of data, of 90 GiB that are compressed, of
#: 5 TiB that are nearly empty.
MEMORY_BYTES: Final = 8 * 1024**2

#: What a table costs in memory beside its bytes.
_ENTRY_BYTES: Final = 128

#: Of a cluster on scratch: noise is longer than one when it is "packed".
_PLACE_BYTES: Final = 2 * CLUSTER_BYTES

#: What is unpacked at once for a part.
_STEP_BYTES: Final = 1024**2

_ZEROS: Final = bytes(CLUSTER_BYTES)


class PackedTables:
    """So many bytes, zeros at first, of which any may be written again and again.

    What has no room in memory goes to a sparse file, each cluster to its own place in it, where it
    takes as many blocks as it has when packed. For one thread.
    """

    def __init__(self, scratch: int | None, memory_bytes: int) -> None:
        """`scratch`: descriptor of an empty file, for what does not fit into memory."""
        self._scratch, self._room_bytes = scratch, memory_bytes
        self._in_memory: dict[int, bytes] = {}
        self._on_scratch: dict[int, int] = {}

    @property
    def scratch_bytes(self) -> int:
        """What the file takes of its file system."""
        return 0 if self._scratch is None else os.fstat(self._scratch).st_blocks * 512

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range.

        Raises:
            StorageError: scratch cannot be read, or is not what was written.
        """
        return b"".join(
            self._cluster(number)[within : within + piece]
            for number, within, piece in split(offset, length, CLUSTER_BYTES)
        )

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes there.

        Raises:
            StorageError: scratch cannot be written.
        """
        for number, within, piece in split(offset, len(data), CLUSTER_BYTES):
            if piece == CLUSTER_BYTES:
                self._hold(number, data[:piece])
            else:
                old = self._cluster(number)
                self._hold(number, old[:within] + data[:piece] + old[within + piece :])
            data = data[piece:]

    def _cluster(self, number: int) -> bytes:
        packed = self._in_memory.get(number)
        if packed is None:
            if number not in self._on_scratch:
                return _ZEROS
            packed = self._read_scratch(number)
        try:
            return zlib.decompress(packed, bufsize=CLUSTER_BYTES)
        except zlib.error as err:  # it has a checksum of what was packed
            raise StorageError("scratch is not what was written there") from err

    def _hold(self, number: int, content: bytes | memoryview) -> None:
        packed = b"" if content == _ZEROS else zlib.compress(content, zlib.Z_BEST_SPEED)
        if (old := self._in_memory.pop(number, None)) is not None:
            self._room_bytes += len(old) + _ENTRY_BYTES
        self._on_scratch.pop(number, None)
        if not packed:
            return
        if len(packed) + _ENTRY_BYTES <= self._room_bytes:
            self._room_bytes -= len(packed) + _ENTRY_BYTES
            self._in_memory[number] = packed
        else:
            self._write_scratch(number, packed)
            self._on_scratch[number] = len(packed)

    def _read_scratch(self, number: int) -> bytes:
        length = self._on_scratch[number]
        try:
            found = os.pread(self._file, length, number * _PLACE_BYTES)
        except OSError as err:
            raise StorageError(f"scratch cannot be read: {err.strerror}") from err
        if len(found) != length:
            raise StorageError("scratch is shorter than what was written there")
        return found

    def _write_scratch(self, number: int, packed: bytes) -> None:
        place = number * _PLACE_BYTES
        rest = memoryview(packed)
        try:
            while rest:
                count = os.pwrite(self._file, rest, place)
                rest, place = rest[count:], place + count
        except OSError as err:
            raise StorageError(f"scratch cannot be written: {err.strerror}") from err

    @property
    def _file(self) -> int:
        if self._scratch is None:
            raise StorageError("there are no tables to be held: no scratch was opened")
        return self._scratch


class HeldTables:
    """`PackedTables`, touched in a thread of their own: in the order in which they are asked."""

    def __init__(self, tables: PackedTables, hand: ThreadPoolExecutor) -> None:
        """`hand`: one thread."""
        self._tables, self._hand = tables, hand

    @property
    def scratch_bytes(self) -> int:
        """See `PackedTables`."""
        return self._tables.scratch_bytes

    async def read(self, offset: int, length: int) -> bytes:
        """See `PackedTables`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._hand, self._tables.read, offset, length)

    async def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on."""
        for at in range(0, len(into), _STEP_BYTES):
            piece = into[at : at + _STEP_BYTES]
            piece[:] = await self.read(offset + at, len(piece))

    async def write(self, offset: int, data: memoryview) -> None:
        """See `PackedTables`."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._hand, self._tables.write, offset, data)


@asynccontextmanager
async def held_tables(folder: Path, table_bytes: int, most_bytes: int) -> AsyncIterator[HeldTables]:
    """So many bytes of them; the file on scratch has no name, and is gone with the block.

    Raises:
        StorageError: scratch might need more than `most_bytes`, or the folder cannot be used.
    """
    # Whoever is told to leave waits for the thread: the file's descriptor could be another's then.
    with _scratch(folder, table_bytes, most_bytes) as file:
        async with threads(1, "tables") as hand:
            yield HeldTables(PackedTables(file, MEMORY_BYTES), hand)


@contextmanager
def _scratch(folder: Path, table_bytes: int, most_bytes: int) -> Iterator[int | None]:
    """A file for as much, None for nothing."""
    if table_bytes == 0:
        yield None
        return
    # Without packing: better refused now than after hours.
    if table_bytes > most_bytes:
        raise StorageError(
            f"the export may need {format_size(table_bytes)} of scratch, and "
            f"{format_size(most_bytes)} are allowed (transfers.max_scratch)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    except OSError as err:
        raise StorageError(f"scratch folder {folder}: {err.strerror}") from err
    with file:
        yield file.fileno()
