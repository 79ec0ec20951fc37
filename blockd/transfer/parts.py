"""The parts of one multipart upload: filled one after the other, sent several at once.

Memory is bounded: so many part buffers exist and no more, and whoever wants the next one waits.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from blockd.transfer.pages import pages

#: S3 takes no smaller part, but for the last.
LEAST_PART_BYTES = 5 * 1024**2


def part_bytes_for(object_bytes: int, part_bytes: int, max_parts: int) -> int:
    """The size of parts in which an object of `object_bytes` has at most `max_parts`.

    `part_bytes` unless that gives too many; whole MiB, and so whole clusters of an image.
    """
    needed = max(part_bytes, -(-object_bytes // max_parts))
    return -(-needed // 1024**2) * 1024**2


class PartsWriter:
    """Part buffers and the tasks that send them.

    Attributes:
        etags: what the server answered, by part number.
    """

    def __init__(
        self,
        send: Callable[[int, memoryview], Awaitable[str]],
        *,
        part_bytes: int,
        buffers: int,
        clears: bool,
    ) -> None:
        """`send` uploads a part and answers its ETag; `buffers` parts exist at most.

        Args:
            clears: whether a buffer is all zeros when it is handed out again. Who fills each to
                its last byte does without: the pages need not be given back, and faulted in again
                at four times the cost of copying into them (12 ms for each 16 MiB, measured).
        """
        self.part_bytes, self.etags = part_bytes, dict[int, str]()
        self._send, self._room = send, asyncio.Semaphore(buffers)
        self._clears = clears
        self._spare: list[mmap.mmap] = []
        self._all: list[mmap.mmap] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Whatever is still being sent is given up."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        self._spare.clear()
        for buffer in self._all:
            with suppress(BufferError):  # a view of it lives on in a traceback
                buffer.close()

    async def buffer(self) -> mmap.mmap:
        """Room for a part; all zeros if it `clears`.

        Raises:
            Exception: why an earlier part could not be sent.
        """
        await self._room.acquire()
        self._check()
        if self._spare:
            return self._spare.pop()
        fresh = pages(self.part_bytes)
        self._all.append(fresh)
        return fresh

    def submit(
        self,
        number: int,
        buffer: mmap.mmap,
        length: int,
        reading: Awaitable[object] | None = None,
    ) -> None:
        """Send the first `length` bytes of a buffer, which is given back with this.

        Args:
            reading: reads them, too, and must end, and well, before the buffer is filled again.
        """
        sending = self._one(number, buffer, length, reading)
        task = asyncio.create_task(sending, name=f"part {number}")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _one(
        self, number: int, buffer: mmap.mmap, length: int, reading: Awaitable[object] | None
    ) -> None:
        try:
            with memoryview(buffer) as whole, whole[:length] as part:
                self.etags[number] = await self._send(number, part)
            if reading is not None:
                await reading
            if self._clears:
                buffer.madvise(mmap.MADV_DONTNEED)  # it is all zeros again, and takes no memory
            self._spare.append(buffer)
        except Exception as err:  # noqa: BLE001 - raised where the next part is asked for
            self._failure = self._failure or err
        finally:
            self._room.release()

    async def drain(self) -> None:
        """Wait until all that was submitted is at the server.

        Raises:
            Exception: why a part could not be sent.
        """
        while self._sending:
            await asyncio.wait(set(self._sending), return_when=asyncio.FIRST_COMPLETED)
            self._check()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
