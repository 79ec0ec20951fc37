"""The limit on what all transfers together may move."""

from __future__ import annotations

import asyncio


class Bandwidth:
    """Bytes per second; 0 is no limit."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether `take` may wait."""
        return self._bytes_per_s > 0

    async def take(self, count_bytes: int) -> None:
        """Wait until so many more may pass. Whoever comes first goes first."""
        if not self._bytes_per_s:
            return
        now_s = asyncio.get_running_loop().time()
        begin_s = max(self._free_at_s, now_s)
        self._free_at_s = begin_s + count_bytes / self._bytes_per_s
        if begin_s > now_s:
            await asyncio.sleep(begin_s - now_s)
