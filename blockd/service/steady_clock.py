"""A clock that nobody can set: it runs while the host does.

The host's clock may be a year ahead for an hour, or back in 1970 until a time server answers. What
is kept for a time is kept for so long a time of running: a jump erases nothing, and a host that was
off for a month finds its trash as it left it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import CatalogUnavailable

_KEY = "steady_clock"


class SteadyClock:
    """Seconds; Unix time when it first began to run."""

    def __init__(self, boot_id: str, uptime_s: Callable[[], float]) -> None:
        """Args:
        boot_id: another one after each boot.
        uptime_s: seconds since the boot, time asleep included.
        """
        self._boot_id, self._uptime_s = boot_id, uptime_s
        self._offset = self._noted_at = 0.0

    async def start(self, catalog: Catalog) -> None:
        """Go on from where the last daemon noted it."""
        noted, knows_all = await catalog.read(lambda tx: (tx.meta(_KEY), tx.trash.knows_all()))
        if noted is None:
            self._offset = time.time() - self._uptime_s()
        else:
            boot_id, offset, reading = json.loads(noted)
            # Time since the boot counts; how long the host was off, nobody knows.
            self._offset = offset if boot_id == self._boot_id else reading
        if not knows_all:  # a catalog that was rebuilt
            with suppress(CatalogUnavailable):
                await catalog.write("trash dated", lambda tx: tx.trash.date_unknown(self.now()))

    def now(self) -> float:
        """Its reading."""
        return self._offset + self._uptime_s()

    def note(self, tx: Transaction) -> None:
        """Within a transaction: what the next boot goes on from."""
        self._noted_at = self.now()
        tx.put_meta(_KEY, json.dumps([self._boot_id, self._offset, self._noted_at]))

    @property
    def noted_s_ago(self) -> float:
        """So much time would be lost with the power."""
        return self.now() - self._noted_at
