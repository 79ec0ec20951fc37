"""The pool of the class made of sparse files: as large as it is told to be."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any

from blockd.domain.errors import StorageError
from blockd.domain.pool import PoolUse
from blockd.domain.units import MIB

#: Disks are whole extents, as LVM's are, so that exact sizes are the front's merit.
EXTENT_BYTES = 4 * MIB


class FilePool(ABC):
    """The part of `FileDriver` that is about room.

    Attributes:
        group_free_bytes: what the pool can be extended by.
        group_adds_bytes: what others have put into the volume group; `recount` notices it.
        pool_says: fields of `PoolUse` that `pool` answers with another value.
        changed: set, it is an event of the kernel's.
    """

    def __init__(self, name: str, storage_class: str, capacity_bytes: int) -> None:
        self._name, self._storage_class = name, storage_class
        self.capacity_bytes = capacity_bytes
        self.metadata_bytes, self.metadata_used_bytes = 1024 * MIB, 128 * MIB
        self.group_free_bytes = self.group_adds_bytes = 0
        self.pool_says: dict[str, Any] = {}
        self.changed = asyncio.Event()

    @abstractmethod
    def turn(self, *, holds_another: bool = False) -> AbstractAsyncContextManager[None]:
        """See `StorageDriver`."""

    @abstractmethod
    async def _enter(self, method: str) -> None:
        """Where tests hold an operation or make it fail."""

    @abstractmethod
    def _used_bytes(self) -> int:
        """What all disks take."""

    async def pool(self) -> PoolUse:
        """See `StorageDriver`."""
        await self._enter("pool")
        used_bytes = self._used_bytes()
        use = PoolUse(
            storage_class=self._storage_class,
            name=self._name,
            size_bytes=self.capacity_bytes,
            used_bytes=used_bytes,
            metadata_size_bytes=self.metadata_bytes,
            metadata_used_bytes=self.metadata_used_bytes,
            mode="rw" if used_bytes < self.capacity_bytes else "out_of_data_space",
            needs_check=False,
            group_free_bytes=self.group_free_bytes,
            extent_bytes=EXTENT_BYTES,
            when_full="queue",
        )
        return replace(use, **self.pool_says)

    async def extend_pool(self, size_bytes: int, metadata_bytes: int) -> None:
        """See `StorageDriver`."""
        await self._enter("extend_pool")
        async with self.turn():
            size_bytes = max(whole_extents(size_bytes), self.capacity_bytes)
            metadata_bytes = max(whole_extents(metadata_bytes), self.metadata_bytes)
            more_metadata_bytes = metadata_bytes - self.metadata_bytes
            taken_bytes = size_bytes - self.capacity_bytes + 2 * more_metadata_bytes
            if taken_bytes > self.group_free_bytes:
                raise StorageError(f"insufficient free space: {taken_bytes} bytes are not free")
            self.group_free_bytes -= taken_bytes
            self.capacity_bytes, self.metadata_bytes = size_bytes, metadata_bytes
        self.changed.set()

    async def repair_pool(self) -> None:
        """See `StorageDriver`; what tests made it say is forgotten."""
        await self._enter("repair_pool")
        self.pool_says.clear()
        self.changed.set()

    async def recount(self) -> None:
        """See `StorageDriver`."""
        await self._enter("recount")
        async with self.turn():
            self.group_free_bytes += self.group_adds_bytes
            self.group_adds_bytes = 0

    async def pool_event(self, within_s: float) -> None:
        """See `StorageDriver`; a test is the kernel."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.changed.wait()
        self.changed.clear()


def whole_extents(size_bytes: int) -> int:
    """As many bytes as LVM would hand out."""
    return -(-size_bytes // EXTENT_BYTES) * EXTENT_BYTES
