"""How fast a pool fills."""

from __future__ import annotations

from collections import deque
from typing import Final

#: The present rate is that of so long; of less than the least nothing is said.
WINDOW_S: Final = 600.0
_LEAST_S = 5.0
#: Looks closer than this to the last sample are none of their own.
_APART_S = 2.0
#: Not of a shorter time: an event may come right after the last look, and a few chunks would seem
#: to be gigabytes a second.
_SHORTEST_S = 0.1


class FillRate:
    """Of one number of bytes, from looks at it."""

    def __init__(self, assumed_bytes_s: float) -> None:
        """`assumed_bytes_s`: what it can fill by at most, until more is seen."""
        self.fastest_bytes_s = assumed_bytes_s
        self._samples: deque[tuple[float, int]] = deque()
        self._last: tuple[float, int] | None = None

    def take(self, now_s: float, used_bytes: int) -> None:
        """It was so much at this instant."""
        if self._last is not None:
            then_s, then_bytes = self._last
            rate = (used_bytes - then_bytes) / max(now_s - then_s, _SHORTEST_S)
            self.fastest_bytes_s = max(self.fastest_bytes_s, rate)
        self._last = now_s, used_bytes
        if not self._samples or now_s - self._samples[-1][0] >= _APART_S:
            self._samples.append(self._last)
        while len(self._samples) > 1 and now_s - self._samples[1][0] >= WINDOW_S:
            self._samples.popleft()

    def bytes_s(self) -> float | None:
        """The rate of the last ten minutes; negative when it empties, None when not known yet."""
        if self._last is None or self._last[0] - self._samples[0][0] < _LEAST_S:
            return None
        (began_s, began_bytes), (now_s, now_bytes) = self._samples[0], self._last
        return (now_bytes - began_bytes) / (now_s - began_s)

    def full_in_s(self, left_bytes: int) -> float | None:
        """Until so much more is used, at that rate; None when it does not fill."""
        if left_bytes <= 0:
            return 0.0
        rate = self.bytes_s()
        return left_bytes / rate if rate is not None and rate > 0 else None
