"""A disk that vanishes and comes back, on the real kernel, and events of it that are missed."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockd.host.uevents import block_events
from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api
from tests.support.daemon import Daemon, Place

pytestmark = pytest.mark.kernel

MIB = 1024**2


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def until(what: Callable[[], bool], timeout_s: float = 60) -> float:
    """Wait for a condition; how many seconds it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, "did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def problems(api: Api) -> list[str]:
    found: list[str] = api.host("GET", "health")["problems"]
    return found


def until_well(api: Api) -> float:
    """Until nothing is under way and no problem is left; how many seconds it took."""
    began = time.monotonic()
    while (health := api.host("GET", "health"))["queued"] or health["problems"]:
        assert time.monotonic() - began < 70, health
        time.sleep(0.05)
    return time.monotonic() - began


def seen(api: Api, kind: str, resource_id: str) -> Any:
    return api.host("GET", f"{kind}/{resource_id}")


@pytest.fixture(scope="module")
def shaky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose physical volume is a device-mapper device that can be taken away."""
    run("/sbin/dmsetup", "create", "shaky", "--table", table("linear"))
    device = Path("/dev/mapper/shaky")
    made = Place.fresh(tmp_path_factory.mktemp("shaky"), disk=device, trash_keep="0s")
    yield made
    made.remove_vg()
    run("/sbin/dmsetup", "remove", "shaky")


def table(kind: str) -> str:
    sectors = int(run("/sbin/blockdev", "--getsz", "/dev/ubda"))
    return f"0 {sectors} {kind}" + (" /dev/ubda 0" if kind == "linear" else "")


def swap_table(kind: str) -> None:
    """As when a disk leaves, or comes back; what is in flight is not waited for."""
    run("/sbin/dmsetup", "suspend", "--noflush", "--nolockfs", "shaky")
    run("/sbin/dmsetup", "load", "shaky", "--table", table(kind))
    run("/sbin/dmsetup", "resume", "shaky")


def test_disk_that_vanishes_is_told_within_a_second_and_all_is_well_when_it_is_back(
    shaky: Place,
) -> None:
    with Daemon(shaky) as daemon:
        api = daemon.api
        volume_id = api.create_volume("v", 16 * MIB)
        path = api.device(volume_id)
        stamps.stamp(path, 1)
        snapshot_id = api.snapshot("s", volume_id)
        swap_table("error")
        took_s = until(lambda: any("cannot be read" in line for line in problems(api)))
        print(f"told after {took_s:.2f} s: {problems(api)}")
        assert took_s < 1
        assert len(api.all("volumes")) == len(api.all("snapshots")) == 1
        with pytest.raises(OSError, match="Input/output error"):
            stamps.expect(path, 1)
        made = api.block("POST", "volumes", {"name": "w", "from_empty": {"size": 8 * MIB}})["id"]
        until(lambda: seen(api, "volumes", made)["status"] == "error")
        print(seen(api, "volumes", made)["error"])
        swap_table("linear")
        print(f"well after {until_well(api):.2f} s")
        stamps.expect(path, 1)
        stamps.stamp(path, 2)
        stamps.expect(api.device(api.clone("c", snapshot_id)), 1)
        for kind in ("volumes", "snapshots"):
            for item in api.all(kind):
                api.block("DELETE", f"{kind}/{item['id']}")
        until_well(api)
        expect_agreement(shaky)


def test_overrun_of_the_buffer_for_kernel_events_is_noticed() -> None:
    async def flood() -> list[bool]:
        told: list[bool] = []
        async with block_events(told.append), asyncio.timeout(60):
            while not told:
                await asyncio.sleep(0.01)
            # Nobody reads meanwhile, and pyroute2's buffer takes some thousand.
            with Path("/sys/block/ubda/uevent").open("w") as file:
                for _ in range(20_000):
                    file.write("change")
                    file.flush()
            while True not in told:
                await asyncio.sleep(0.01)
        return told

    assert asyncio.run(flood())[0] is False
