"""A daemon whose catalog holds so many snapshots: `python -m tests.bench.lists_daemon ROOT COUNT`.

Real HTTP and a real catalog; the class is a folder of files, as lists touch no disk.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blockd.catalog import Catalog, Transaction
from blockd.domain.intent import disk_name, new_id
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import AVAILABLE
from blockd.domain.units import format_timestamp
from blockd.domain.volume import Volume
from blockd.logs import set_up_logs
from tests.support.service import PROJECT, served

TAG = "weekly"
_OTHER_PROJECT = "55555555-5555-4555-8555-555555555555"
_VOLUMES = 10
_SIZE_BYTES = 10 * 1024**3


async def fill(catalog: Catalog, count: int) -> None:
    """`count` snapshots of ten volumes; each tenth has another project, each tenth the tag."""

    def rows(tx: Transaction) -> None:
        volumes = [new_id() for _ in range(_VOLUMES)]
        for number, volume_id in enumerate(volumes):
            at = _instant(number)
            tx.add_volume(
                Volume(
                    *(
                        volume_id,
                        PROJECT,
                        f"data-{number}",
                        _SIZE_BYTES,
                        5000,
                        "sbs",
                        AVAILABLE,
                        (),
                    ),
                    *(None, disk_name(volume_id), at, at),
                )
            )
        for number in range(count):
            snapshot_id, at = new_id(), _instant(number)
            # In an order of names that is not that of their making.
            name = f"nightly-{number * 7919 % count:05d}"
            project = _OTHER_PROJECT if number % 10 == 9 else PROJECT
            tags = (TAG,) if number % 10 == 5 else ()
            tx.add_snapshot(
                Snapshot(
                    *(snapshot_id, project, name, _SIZE_BYTES, "sbs", AVAILABLE, False, tags),
                    *(volumes[number % _VOLUMES], None, disk_name(snapshot_id), at, at),
                )
            )

    await catalog.write("filled", rows)


def _instant(number: int) -> str:
    return format_timestamp(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number))


async def _serve(root: Path, count: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with served(root) as running:
        await fill(running.catalog, count)
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        profile = os.environ.get("BENCH_PROFILE")
        if profile is None:
            await stop.wait()
            return
        import cProfile  # noqa: PLC0415 - only to find out where time goes

        with cProfile.Profile() as profiler:
            await stop.wait()
        profiler.dump_stats(profile)


def main() -> None:
    """Serve until SIGTERM; prints `READY`."""
    set_up_logs("info", "json")
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
