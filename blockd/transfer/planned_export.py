"""An export whose image is planned: each part is made from the disk, in order, and leaves.

The tables are the plan's, the data the disk's. Nothing is held back, and any part can be made
again, which is how an interrupted export finds out which parts are at the server.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import structlog

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.transfer import Progress
from blockd.transfer.digest import ContentDigest
from blockd.transfer.disk_reader import DiskReader
from blockd.transfer.pages import pages
from blockd.transfer.parts import PartsWriter
from blockd.transfer.qcow2_plan import TargetPlan
from blockd.transfer.s3_answers import Part
from blockd.transfer.threads import threads

log = structlog.get_logger()

#: What one thread reads of a part at a time.
_SLICE_BYTES: Final = 2 * 1024**2


class PlannedImage:
    """A planned image over its disk, cut into parts of `part_bytes`; the last may be shorter."""

    def __init__(self, plan: TargetPlan, disk: DiskReader, part_bytes: int) -> None:
        """Raises ValueError: a part would end within a cluster."""
        if part_bytes % CLUSTER_BYTES:
            raise ValueError(f"parts of {part_bytes} bytes are not whole clusters")
        self._plan, self._disk, self._part_bytes = plan, disk, part_bytes
        self.size_bytes = plan.object_bytes

    async def sent_before(
        self, has: Sequence[Part], digest: ContentDigest, progress: Progress
    ) -> list[str]:
        """ETags of the parts from 1 on that the server has and that are what they shall be.

        Each is made again and compared by its MD5, which is its ETag; where it is not (a server
        that encrypts with keys of its own), all is sent again. `digest` gets what these parts hold.
        """
        if not has:
            return []
        etags: list[str] = []
        part = memoryview(pages(self._part_bytes))
        for number, there in enumerate(has):
            begin = number * self._part_bytes
            is_whole = there.number == number + 1 and there.size_bytes == self._part_bytes
            if not is_whole or begin + self._part_bytes > self.size_bytes:
                break
            await self._fill(begin, part)
            if await self._disk.do(partial(_md5, part)) != there.etag:
                break
            await self._disk.do(partial(self._hash, digest, begin, part))
            etags.append(f'"{there.etag}"')
            progress.skip(self._part_bytes)
        log.info("parts sent before", right=len(etags), there=len(has))
        return etags

    async def send(
        self,
        parts: PartsWriter,
        digest: ContentDigest,
        trailer: Callable[[str], bytes],
        *,
        first: int,
    ) -> str:
        """Send the parts from `first` (0: all) to the last; the content digest of the whole.

        Args:
            digest: of what lies in the parts before.
            trailer: from the content digest, what stands behind the image; less than a cluster.

        Raises:
            StorageError: the disk cannot be read.
            Exception: why a part could not be sent.
        """
        loop, begin = asyncio.get_running_loop(), first * self._part_bytes
        # One thread: clusters are hashed in their order, while the next part is read.
        async with threads(1, "content-digest") as hashing:
            while True:
                part, length = await parts.buffer(), min(self._part_bytes, self.size_bytes - begin)
                data = memoryview(part)[:length]
                await self._fill(begin, data)
                hashed = loop.run_in_executor(hashing, self._hash, digest, begin, data)
                number = begin // self._part_bytes + 1
                if length < self._part_bytes:
                    break
                parts.submit(number, part, length, hashed)
                begin += length
            await hashed
        # Parts and the image are whole clusters: behind its end is room for the trailer.
        end = trailer(digest.hex())
        part[length : length + len(end)] = end
        parts.submit(number, part, length + len(end))
        await parts.drain()
        return digest.hex()

    async def _fill(self, begin: int, into: memoryview) -> None:
        """Make the bytes from `begin` on, as many as `into` takes; it holds whatever it held."""
        data_at = self._data_at(begin, len(into))
        # Tables in one thread: several would but take turns, and the loop waits among them.
        works = [partial(self._make_tables, begin, into[:data_at])] if data_at else []
        works += [
            partial(self._read, begin + at, into[at : at + _SLICE_BYTES])
            for at in range(data_at, len(into), _SLICE_BYTES)
        ]
        await self._disk.do_all(works)

    def _data_at(self, begin: int, length: int) -> int:
        """Where in a range of the image its data begin."""
        return min(max(self._plan.data_start_bytes - begin, 0), length)

    # in threads

    def _make_tables(self, begin: int, into: memoryview) -> None:
        into[:] = self._plan.tables(begin, len(into))

    def _read(self, begin: int, into: memoryview) -> None:
        at = 0
        for first, count in self._runs(begin, begin + len(into)):
            piece = into[at : at + count * CLUSTER_BYTES]
            self._disk.read(first * CLUSTER_BYTES, piece)
            at += len(piece)

    def _hash(self, digest: ContentDigest, begin: int, data: memoryview) -> None:
        """Add the data clusters of a range that was made."""
        at = self._data_at(begin, len(data))
        for first, count in self._runs(begin + at, begin + len(data)):
            digest.add(first, data[at : at + count * CLUSTER_BYTES])
            at += count * CLUSTER_BYTES

    def _runs(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """(first cluster of the disk, how many) of a range of the image that is data."""
        first = count = 0
        for cluster in self._plan.clusters(begin, end):
            if cluster != first + count:
                if count:
                    yield first, count
                first, count = cluster, 0
            count += 1
        if count:
            yield first, count


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
