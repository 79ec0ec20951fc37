"""The daemon on a host without device-mapper: `python -m tests.bench.native_daemon PLACE.json`.

All of it is real (service, catalog, driver, LVM processes, HTTP), but for two things:

- the kernel's device-mapper, of which there is none: `NoMapper` knows the pool and no front;
- `lvcreate` makes a linear LV: without device-mapper LVM refuses to make a thin one
  (lvm2, lib/metadata/lv_manip.c, `_lv_create_an_lv`).
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from blockd.api.app import make_app
from blockd.api.server import serve_unix
from blockd.catalog import Transaction, open_catalog
from blockd.config import Config, LvmSection, TrashSection
from blockd.daemon import open_service
from blockd.domain.effects import SideEffects
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import AVAILABLE
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.host.command import Companion
from blockd.logs import set_up_logs
from blockd.metrics import CountedEffects, Metrics
from blockd.service.classes import StorageClass, StorageClasses
from blockd.storage.dm import DeviceInfo, DeviceMapper, Target
from blockd.storage.fronts import Fronts
from blockd.storage.lvm_commands import LvmCommands
from blockd.storage.lvm_thin import LvmThin, ThinSettings
from blockd.storage.vg_queue import VgQueue
from blockd.transfer.no_images import NoImages
from tests.bench.crafted_vg import ORIGIN, POOL
from tests.support.service import PROJECT, file_config

VOLUME_ID = "33333333-3333-4333-8333-333333333333"
CATALOG_ID = "44444444-4444-4444-8444-444444444444"
TAG = f"blockd.{CATALOG_ID}"
#: As `LvmCommands.snapshot_thin`, with a size where that has an origin.
LINEAR = (
    *("--extents", "1", "--zero", "n", "--wipesignatures", "n"),
    *("--permission", "r", "--setactivationskip", "y", "--activate", "n"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the daemon finds what the benchmark has made; `snapshots` are LVs in the crafted VG."""

    root: str
    vg: str
    system_dir: str
    snapshots: list[str]


class NoMapper:
    """Stands in for `DeviceMapper`: a pool with room, whose transaction id counts; no front."""

    def __init__(self) -> None:
        self.transaction_id = 0

    def devices(self, name_prefix: str) -> list[DeviceInfo]:
        """No fronts."""
        return []

    def info(self, uuid: str) -> DeviceInfo | None:
        """The pool is active, nothing else."""
        return DeviceInfo(uuid, uuid, 0, 0, 0, False, True) if uuid.endswith("-tpool") else None

    def status(self, uuid: str) -> list[Target]:
        """The pool's."""
        return [Target(0, 1, "thin-pool", f"{self.transaction_id} 1/4096 1/1024 - rw")]


class LinearCommands(LvmCommands):
    """Makes linear LVs instead of thin snapshots, and counts them as the pool would."""

    mapper: NoMapper

    async def snapshot_thin(
        self, pairs: Sequence[tuple[str, str]], tag: str, *, timeout_s: float
    ) -> None:
        """Same command, same flags, another kind of segment."""
        for lv, _ in pairs:
            args = (*LINEAR, "--addtag", tag, "--name", lv, self.vg)
            await self._run("lvcreate", "--yes", *args, timeout_s=timeout_s)
            self.mapper.transaction_id += 1


def _rows(place: Place) -> tuple[Volume, list[Snapshot]]:
    """The catalog of the crafted volume group."""
    now, size_bytes = now_timestamp(), 64 * 1024**2
    volume = Volume(
        *(VOLUME_ID, PROJECT, "origin", size_bytes, 5000, "sbs", AVAILABLE, ()),
        *(None, ORIGIN, now, now),
    )
    return volume, [
        Snapshot(
            *(name.removeprefix("blockd-"), PROJECT, name, size_bytes, "sbs", AVAILABLE, False, ()),
            *(VOLUME_ID, None, name, now, now),
        )
        for name in place.snapshots
    ]


async def _serve(place: Place) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = _config(place)
    metrics = Metrics()
    effects = CountedEffects(metrics, SideEffects())
    volume, snapshots = _rows(place)

    def fill(tx: Transaction) -> None:
        tx.add_volume(volume)
        for snapshot in snapshots:
            tx.add_snapshot(snapshot)

    async with open_catalog(config.catalog.path, effects) as catalog:
        driver = _driver(config, effects, metrics)
        await driver.open()
        sbs = StorageClass("sbs", driver, overcommit=1e9, high_water_percent=95)
        classes = StorageClasses({"sbs": sbs}, "sbs")
        async with open_service(config, catalog, classes, NoImages()) as service:
            await catalog.write("filled", fill)

            async def page() -> bytes:
                health = await service.host.health()
                return metrics.render(health.pools, health.queued, health.catalog_copies)

            app = make_app(service, page, lambda _: True)
            async with serve_unix(app, config.api.socket):
                sys.stdout.write("READY\n")
                sys.stdout.flush()
                await stop.wait()


def _config(place: Place) -> Config:
    plain = file_config(Path(place.root))
    return plain.model_copy(
        update={
            "trash": TrashSection(keep=0),
            "lvm": LvmSection(system_dir=Path(place.system_dir)),
            "classes": {"sbs": plain.classes["sbs"].model_copy(update={"vg": place.vg})},
        }
    )


def _driver(config: Config, effects: SideEffects, metrics: Metrics) -> LvmThin:
    """As `open_lvm_thin` makes it, but for the stand-ins."""
    lvm, vg = config.lvm, config.classes["sbs"].vg
    settings = ThinSettings(
        name="sbs",
        vg=vg,
        pool=POOL,
        system_dir=lvm.system_dir,
        udev=False,
        command_timeout_s=lvm.command_timeout,
        max_suspend_s=lvm.max_suspend,
    )
    queue = VgQueue(metrics.queue_wait_s.observe)
    commands = LinearCommands(
        vg, lvm.system_dir, queue, effects, udev=False, timeout_s=lvm.command_timeout
    )
    commands.mapper = NoMapper()
    mapper = cast("DeviceMapper", commands.mapper)
    watchdog = Companion(["/bin/true"])  # never told anything: there are no fronts
    fronts = Fronts(
        mapper, watchdog, effects, owner=f"sbs-{CATALOG_ID}", max_suspend_s=settings.max_suspend_s
    )
    return LvmThin(settings, CATALOG_ID, commands, fronts, mapper, queue)


def main() -> None:
    """Serve until SIGTERM; prints `READY`."""
    set_up_logs("info", "json")
    asyncio.run(_serve(Place(**json.loads(Path(sys.argv[1]).read_text("utf-8")))))


if __name__ == "__main__":
    main()
