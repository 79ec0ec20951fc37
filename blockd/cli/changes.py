"""Waiting until a resource may have changed: as the daemon tells, or by the clock."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from .stream import EventStream, StreamEnded, StreamRefused

#: Between two looks while there is no stream: at first, and at most.
FIRST_INTERVAL_S = 0.02
LONGEST_INTERVAL_S = 1.0
GROWTH = 1.5


class Changes:
    """Of one resource, for the length of a block. Who uses it looks, waits, and looks again.

    It never says that something has changed, only that it is time to look: so it does not matter
    what a stream that breaks has not told.
    """

    def __init__(self, socket_path: str, resource_id: str) -> None:
        self._socket_path = socket_path
        self._query = [("resource_id", resource_id)]
        self._stream: EventStream | None = None
        self._has_streams = True
        self._interval_s = FIRST_INTERVAL_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def wait(self, timeout_s: float) -> None:
        """Until it is time to look again, `timeout_s` at most."""
        if self._stream is None and self._has_streams and self._began():
            return  # what changed before the stream began it will not tell
        if self._stream is None:
            time.sleep(max(0.0, min(self._interval_s, timeout_s)))
            self._interval_s = min(self._interval_s * GROWTH, LONGEST_INTERVAL_S)
            return
        until_s = time.monotonic() + timeout_s
        try:
            while (left_s := until_s - time.monotonic()) > 0:
                told = self._stream.next(left_s)
                if told is not None and told.name:
                    return
        except StreamEnded:
            self._leave()

    def _began(self) -> bool:
        try:
            self._stream = EventStream(self._socket_path, self._query)
        except StreamRefused:
            self._has_streams = False  # an older daemon, or one that has enough of them
            return False
        except (OSError, StreamEnded):
            return False
        self._interval_s = FIRST_INTERVAL_S
        return True

    def _leave(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
