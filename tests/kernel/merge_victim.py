"""A daemon's part that begins a merge, to be killed while it does: DISK SNAPSHOT."""

from __future__ import annotations

import asyncio
import sys

from tests.contract.lab_drivers import THICK_DISK, open_thick


async def _main(disk: str, snapshot: str) -> None:
    opened = open_thick(THICK_DISK, is_fresh=False, hidden=[disk])
    async with opened as storage, storage.driver.turn():
        print("ready", flush=True)
        sys.stdin.readline()
        await storage.driver.begin_merge(disk, snapshot)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
