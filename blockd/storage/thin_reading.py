"""Reading the disks of a thin pool ourselves, and which chunks a disk, or the pool, has.

dm-thin's metadata can be read while the pool is in use from a snapshot that the kernel keeps of
them, one at a time (Linux, thin-provisioning.rst, `reserve_metadata_snap`). A crash may leave it
reserved, which is put right at the next start.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog

from blockd.domain.allocation import Allocation
from blockd.domain.errors import StorageError
from blockd.host.command import find_tool, lines_of
from blockd.storage.disk_reading import DiskReading
from blockd.storage.dm import DeviceMapper, lv_device_name
from blockd.storage.fronts import Lower
from blockd.storage.lvm_commands import LvmCommands
from blockd.storage.thin_dump import ThinDump
from blockd.storage.thin_ids import parse_thin_id

log = structlog.get_logger()

_SILENCE_S = 60.0
_PIECE_BYTES = 1024**2
_NO_BLOCKS = re.compile(rb'nr_data_blocks="0"')


class ThinReading(DiskReading):
    """The disks of one class that are open for reading. Raises StartError without thin_dump."""

    def __init__(
        self,
        vg: str,
        pool: str,
        lvm: LvmCommands,
        mapper: DeviceMapper,
        turn: Callable[[], AbstractAsyncContextManager[None]],
        lower: Callable[[str], Awaitable[Lower]],
        amiss: Callable[[], None],
    ) -> None:
        """As `DiskReading`."""
        super().__init__(vg, lvm, mapper, turn, lower, amiss)
        self._pool = pool
        self._thin_dump, self._thin_ls = (
            find_tool(tool, "thin-provisioning-tools") for tool in ("thin_dump", "thin_ls")
        )
        self._metadata_snapshot = asyncio.Lock()

    async def allocation(self, disk: str, size_bytes: int, pool_uuid: str) -> Allocation:
        """See the port. Costs no LVM process."""
        dump = ThinDump(size_bytes)
        device = str(self.device_id(disk))
        async with self._lines(pool_uuid, self._thin_dump, "--dev-id", device) as lines:
            async for line in lines:
                dump.take(line)
        return dump.finish()

    async def thin_ids(self, pool_uuid: str) -> set[int]:
        """The numbers of all devices of the pool, whoever knows them."""
        numbers = set()
        argv = (self._thin_ls, "--no-headers", "--format", "DEV")
        async with self._lines(pool_uuid, *argv) as lines:
            async for line in lines:
                if (number := parse_thin_id(line)) is not None:
                    numbers.add(number)
        return numbers

    @property
    def is_asking(self) -> bool:
        """Whether a snapshot of the metadata is reserved because somebody here reads it."""
        return self._metadata_snapshot.locked()

    @asynccontextmanager
    async def _lines(
        self, pool_uuid: str, tool: str, *args: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """What a tool says of the pool's metadata as they are now."""
        async with self.alone(), self.reserved(pool_uuid), self._said(tool, *args) as lines:
            yield lines

    async def dump(self, data_blocks: int) -> AsyncGenerator[bytes, None]:
        """What `thin_dump` writes of the whole pool, as XML, within `reserved`.

        Args:
            data_blocks: of the pool. A metadata snapshot has no space maps (Linux,
                dm-thin-metadata.c, `__reserve_metadata_snap`), so that thin_dump counts 0, and
                thin_restore would refuse every mapping.

        Raises:
            StorageError: it failed, or what came is no whole dump.
        """
        piece, line = bytearray(), b""
        async with self._said(self._thin_dump) as lines:
            async for line in lines:
                if line.startswith(b"<superblock"):
                    piece += _NO_BLOCKS.sub(b'nr_data_blocks="%d"' % data_blocks, line, count=1)
                else:
                    piece += line
                if len(piece) >= _PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
        if line.strip() != b"</superblock>":
            raise StorageError("thin_dump's output ends in the middle")
        yield bytes(piece)

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Wait for the pool's one metadata snapshot, before `reserved`."""
        return self._metadata_snapshot

    @asynccontextmanager
    async def reserved(self, pool_uuid: str) -> AsyncIterator[None]:
        """Within `alone`: the metadata as they are now can be read within the block."""
        # Reserving commits the pool's metadata first: what was written is in it.
        reserving = asyncio.ensure_future(
            asyncio.to_thread(self._mapper.message, pool_uuid, "reserve_metadata_snap")
        )
        try:
            await asyncio.shield(reserving)  # a thread goes on when its waiter is cancelled
            yield
        finally:
            await asyncio.shield(self._release_after(reserving, pool_uuid))

    async def _release_after(self, reserving: asyncio.Future[None], pool_uuid: str) -> None:
        await asyncio.wait([reserving])
        if reserving.exception() is None:
            await self._release(pool_uuid)

    @asynccontextmanager
    async def _said(self, tool: str, *args: str) -> AsyncIterator[AsyncIterator[bytes]]:
        metadata = f"/dev/mapper/{lv_device_name(self._vg, f'{self._pool}_tmeta')}"
        try:
            argv = (tool, "--metadata-snap", *args, metadata)
            async with lines_of(argv, silence_s=_SILENCE_S) as lines:
                yield lines
        except TimeoutError:
            name = tool.rpartition("/")[2]
            raise StorageError(f"{name} said nothing for {_SILENCE_S:g} s") from None

    async def _release(self, pool_uuid: str) -> None:
        await asyncio.to_thread(self._mapper.message, pool_uuid, "release_metadata_snap")

    async def release_leftover(self, pool_uuid: str) -> None:
        """Give back the metadata snapshot that a crash left reserved, and nobody reads now."""
        if self._metadata_snapshot.locked():
            return
        async with self._metadata_snapshot:
            log.warning("releasing the metadata snapshot that was left reserved", pool=self._pool)
            await self._release(pool_uuid)

    def device_id(self, disk: str) -> int:
        """Its number within the pool: `thin <pool> <number>` (thin-provisioning.rst)."""
        info = self._mapper.info_of_name(lv_device_name(self._vg, disk))
        if info is None:
            raise StorageError(f"LV {self._vg}/{disk} is not active")
        (target,) = self._mapper.table(info.uuid)
        fields = target.params.split()
        if target.kind != "thin" or len(fields) != 2:
            raise StorageError(f"LV {self._vg}/{disk} is no thin volume with one parent")
        return int(fields[1])
