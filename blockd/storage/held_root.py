"""A pool whose power went while a metadata snapshot of it was reserved or released.

The kernel enters the held root into the superblock in memory, and changes the counts of what is
held; then it commits. A commit writes whatever has changed, the superblock among it, and flushes
that, before it writes the superblock that leads to the new counts. Power that goes between the two
leaves a superblock with the new held root and the old counts (Linux, drivers/md/dm-thin-metadata.c,
`__reserve_metadata_snap`, `__release_metadata_snap`, `__commit_transaction`; seen in the crash
replay). All is there, but thin_check finds wrong counts, and LVM does not activate the pool.

The way back is the held root of the last commit: none, or the copy of the superblock that was held.
It is taken when thin_check finds not one fault with it (docs/decisions/0021-held-root.md).
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from blockd.domain.errors import StorageError
from blockd.host.command import find_tool, running
from blockd.storage.dm import DeviceMapper, lv_device_name
from blockd.storage.lvm_commands import LvmCommands
from blockd.storage.superblock import BLOCK_BYTES, held_root, is_superblock, with_held_root

log = structlog.get_logger()

_CHECK_S = 600.0
_PIECE_BYTES = 1024**2
#: Old copies of the superblock stay where they were until something else is written there.
_MOST_COPIES = 64


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Where they are: `device` shows them, read-only; they begin at `offset_bytes` of `disk`."""

    device: Path
    disk: Path
    offset_bytes: int


class HeldRoot:
    """Of one pool. Within a turn of its volume group."""

    def __init__(self, pool: str, lvm: LvmCommands, mapper: DeviceMapper) -> None:
        self._lv, self._lvm, self._mapper = f"{pool}_tmeta", lvm, mapper
        self._pool = pool

    async def put_back(self) -> bool:
        """Of a pool that LVM would not activate: whether LVM should be asked again.

        Nothing else of the metadata is touched; where no held root makes them whole, they are as
        they were.

        Raises:
            StorageError: LVM does not give the metadata alone, or their disk does not answer.
        """
        try:
            async with self._alone() as metadata:
                return await self._search(metadata)
        except OSError as err:
            raise StorageError(f"metadata of {self._lvm.vg}/{self._pool}: {err}") from err

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[_Metadata]:
        """The metadata without the pool; LVM shows them read-only."""
        # Of an attempt that was cut short, or of LVM's: a pool does not come up beside them.
        await self._lvm.deactivate([self._lv])
        await self._lvm.activate([self._lv])
        try:
            yield self._found()
        finally:
            # Not shielded: who left a shield would leave the turn, too, and LVM go on without one.
            # A command whose waiter leaves keeps the turn.
            await self._lvm.deactivate([self._lv])

    def _found(self) -> _Metadata:
        name = lv_device_name(self._lvm.vg, self._lv)
        info = self._mapper.info_of_name(name)
        if info is None:
            raise StorageError(f"LV {self._lvm.vg}/{self._lv} has no device")
        first, *_ = self._mapper.table(info.uuid)
        if first.kind != "linear":
            raise StorageError(f"LV {self._lvm.vg}/{self._lv} is {first.kind}, not linear")
        number, _, start = first.params.partition(" ")
        words = Path(f"/sys/dev/block/{number}/uevent").read_text("ascii").split()
        (node,) = [word.partition("=")[2] for word in words if word.startswith("DEVNAME=")]
        return _Metadata(Path("/dev/mapper") / name, Path("/dev") / node, int(start) * 512)

    async def _search(self, metadata: _Metadata) -> bool:
        if await self._is_whole(metadata.device):
            return True  # it was put back, and the power went again
        with _opened(metadata) as disk:
            was = await asyncio.to_thread(disk.read)
            if not is_superblock(was):
                return False
            found = await asyncio.to_thread(lambda: [0, *_copies(metadata.device)])
            for number in found:
                if number == held_root(was):
                    continue
                await asyncio.to_thread(disk.write, with_held_root(was, number))
                if await self._is_whole(metadata.device):
                    log.warning(
                        "pool metadata as of their last commit",
                        pool=f"{self._lvm.vg}/{self._pool}",
                        held_root=number,
                        held_root_before=held_root(was),
                    )
                    return True
            await asyncio.to_thread(disk.write, was)
        return False

    async def _is_whole(self, device: Path) -> bool:
        argv = (find_tool("thin_check", "thin-provisioning-tools"), "-q", str(device))
        try:
            async with running(argv, {}) as child:
                return (await child.wait(_CHECK_S)).returncode == 0
        except TimeoutError:
            raise StorageError(f"thin_check {device} has not ended in {_CHECK_S:g} s") from None


class _Superblock:
    """Block 0 of the metadata, past the caches: thin_check reads so, too."""

    def __init__(self, descriptor: int, offset_bytes: int) -> None:
        self._descriptor, self._offset_bytes = descriptor, offset_bytes

    def read(self) -> bytes:
        with mmap.mmap(-1, BLOCK_BYTES) as buffer:
            os.preadv(self._descriptor, [buffer], self._offset_bytes)
            return buffer[:]

    def write(self, block: bytes) -> None:
        """What differs lies in one sector, so a power cut leaves the one or the other."""
        with mmap.mmap(-1, BLOCK_BYTES) as buffer:
            buffer[:] = block
            os.pwritev(self._descriptor, [buffer], self._offset_bytes)


@contextmanager
def _opened(metadata: _Metadata) -> Iterator[_Superblock]:
    flags = os.O_RDWR | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC
    descriptor = os.open(metadata.disk, flags)
    try:
        yield _Superblock(descriptor, metadata.offset_bytes)
    finally:
        os.close(descriptor)


def _copies(device: Path) -> list[int]:
    """The blocks that hold a copy of the superblock; the last commit may have held one of them."""
    found: list[int] = []
    with device.open("rb", buffering=0) as file:
        first = 0
        while piece := file.read(_PIECE_BYTES):
            for at in range(0, len(piece), BLOCK_BYTES):
                number = first + at // BLOCK_BYTES
                if number and is_superblock(piece[at : at + BLOCK_BYTES], number):
                    found.append(number)
            first += len(piece) // BLOCK_BYTES
    return found[-_MOST_COPIES:]
