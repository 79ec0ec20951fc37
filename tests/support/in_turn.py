"""A writer that stamps several volumes in turn, whose every instant can be told from their bytes.

Write number n is of generation n + 1 and goes to volume n % count: so no volume can be ahead of
the one before it, nor a block older than those around it, unless they are of two instants.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Self

from tests.support import stamps
from tests.support.stamps import BLOCK_BYTES

#: As in tests/contract/writer.py: a copy made in ascending order must not meet us by chance.
LEAP = 97


def place(write: int, count: int, blocks: int) -> tuple[int, int]:
    """The volume and the block of a write; `blocks` is a power of two."""
    turn, volume = divmod(write, count)
    return volume, turn * LEAP % blocks


def instant(contents: Sequence[Sequence[int]]) -> int:
    """How many writes these volumes hold, generations by block; raises if it is no one number."""
    count, blocks = len(contents), len(contents[0])
    position = max(map(max, contents))
    expected = [[0] * blocks for _ in contents]
    for write in range(max(position - count * blocks, 0), position):
        volume, block = place(write, count, blocks)
        expected[volume][block] = write + 1
    for volume, (found, wanted) in enumerate(zip(contents, expected, strict=True)):
        for block, pair in enumerate(zip(found, wanted, strict=True)):
            if pair[0] != pair[1]:
                raise AssertionError(
                    f"no single instant: after {position} writes block {block} of volume {volume} "
                    f"is of write {pair[1]}, found {pair[0]}"
                )
    return position


class WriterInTurn:
    """A thread that writes until the block ends, past all caches; it fails if a write fails.

    Attributes:
        position: so many writes are done.
        longest_s: the longest that one of them took, since this was last set.
    """

    def __init__(self, paths: Sequence[str | Path], size_bytes: int) -> None:
        self.position, self.longest_s = 0, 0.0
        self._paths, self._blocks = paths, size_bytes // BLOCK_BYTES
        self._stop, self._error = Event(), list[BaseException]()
        self._thread = Thread(target=self._run, name="writer in turn")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error[0]

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as err:
            self._error.append(err)

    def _write(self) -> None:
        devices = [stamps.opened(path, write=True) for path in self._paths]
        opened = [device.__enter__() for device in devices]
        try:
            while not self._stop.is_set():
                volume, block = place(self.position, len(opened), self._blocks)
                began = monotonic()
                start = block * BLOCK_BYTES
                opened[volume].write(self.position + 1, start, start + BLOCK_BYTES)
                self.position += 1
                self.longest_s = max(self.longest_s, monotonic() - began)
        finally:
            for device in devices:
                device.__exit__(None, None, None)
