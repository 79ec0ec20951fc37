"""Writes to the volumes of a group while it is taken, as `World.amid` has it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from tests.faults.world import Op, group_writes
from tests.support import stamps
from tests.support.stamps import BLOCK_BYTES

#: A group takes a second or more in the lab: so its instant is somewhere among the writes.
_PAUSE_S = 0.004


class WriterAmid:
    """A thread that makes all the writes of a group, without a pause once the block has ended.

    The block ends with what it failed with, if it failed.
    """

    def __init__(self, group: Op, paths: Sequence[Path]) -> None:
        self._group, self._paths = group, paths
        self._hurries, self._error = Event(), list[BaseException]()
        self._thread = Thread(target=self._run, name="writer amid a group")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hurries.set()
        self._thread.join()
        if self._error:
            raise self._error[0]

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                devices = [
                    stack.enter_context(stamps.opened(path, write=True)) for path in self._paths
                ]
                for number in range(group_writes(self._group)):
                    block, place = divmod(number, len(devices))
                    begin = (self._group.start + block) * BLOCK_BYTES
                    devices[place].write(self._group.generation, begin, begin + BLOCK_BYTES)
                    self._hurries.wait(_PAUSE_S)
        except BaseException as err:
            self._error.append(err)
