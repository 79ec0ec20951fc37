"""A daemon to be killed while a guest is frozen.

    python -m tests.support.guest_victim ROOT URI

Makes a volume and prints its id; told `go`, snapshots it, and prints `frozen` when storage is asked
for the snapshot, which never comes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from blockd.domain.snapshot import NewSnapshot
from tests.support.guests import Gate, a_volume, has_users, until, with_guests


async def _main(root: Path, uri: str) -> None:
    async with with_guests(root, uri) as run:
        volume = await a_volume(run)
        print(volume.id, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await until(lambda: has_users(run, volume))
        run.driver.gates["snapshot"] = gate = Gate()
        await run.service.snapshots.create(NewSnapshot(volume.id, "late", None, (), False))
        await gate.reached.wait()
        print("frozen", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2]))
