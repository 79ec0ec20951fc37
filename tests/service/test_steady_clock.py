"""Time that passes while the host runs, and what it means for the trash."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockd.catalog import Catalog, open_catalog
from blockd.domain.states import Status
from blockd.domain.volume import Volume
from blockd.service import steady_clock
from blockd.service.steady_clock import SteadyClock

DELETED = Volume(
    id="1",
    project_id="p",
    name="v",
    size_bytes=1,
    perf_iops=None,
    storage_class="sbs",
    status=Status.DELETED,
    tags=(),
    parent_snapshot_id=None,
    disk="d",
    created_at="x",
    updated_at="x",
    deleted_at="x",
)
HOUR_S, YEAR_S = 3600.0, 365 * 86400.0


class Host:
    """A host whose uptime and boots a test decides on."""

    def __init__(self) -> None:
        self.boot_id, self.uptime_s = "first", 1000.0

    def reboot(self, boot_id: str) -> None:
        """It has been up for a minute when the daemon starts."""
        self.boot_id, self.uptime_s = boot_id, 60.0

    async def clock(self, catalog: Catalog) -> SteadyClock:
        """As a daemon that starts now makes it."""
        clock = SteadyClock(self.boot_id, lambda: self.uptime_s)
        await clock.start(catalog)
        await catalog.write("clock noted", clock.note)
        return clock


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with open_catalog(tmp_path / "catalog.sqlite") as opened:
        yield opened


async def test_clock_begins_as_unix_time_and_runs_as_the_host_does(catalog: Catalog) -> None:
    host = Host()
    clock = await host.clock(catalog)
    began = clock.now()
    assert abs(began - time.time()) < 5
    host.uptime_s += HOUR_S
    assert clock.now() == began + HOUR_S


async def test_clock_of_the_host_that_jumps_changes_nothing(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    clock = await host.clock(catalog)
    began, real = clock.now(), time.time
    monkeypatch.setattr(steady_clock.time, "time", lambda: real() + YEAR_S)
    host.uptime_s += 1
    assert clock.now() == began + 1
    again = await host.clock(catalog)
    assert again.now() == began + 1
    host.reboot("second")
    assert (await host.clock(catalog)).now() == began + 1 + 60


async def test_time_without_a_daemon_counts_and_time_without_power_does_not(
    catalog: Catalog,
) -> None:
    host = Host()
    clock = await host.clock(catalog)
    began = clock.now()
    host.uptime_s += HOUR_S  # no daemon runs
    assert (await host.clock(catalog)).now() == began + HOUR_S
    host.uptime_s += HOUR_S  # and is not noted
    host.reboot("second")
    assert (await host.clock(catalog)).now() == began + HOUR_S + 60


async def test_trash_of_which_nobody_knows_since_when_is_kept_from_now_on(
    catalog: Catalog,
) -> None:
    clock = SteadyClock("boot", lambda: 5.0)
    await catalog.write("lost", lambda tx: tx.add_volume(DELETED))
    await clock.start(catalog)
    assert await catalog.read(lambda tx: tx.trash.oldest()) == clock.now()
    await catalog.write("erased", lambda tx: tx.remove_volume(DELETED.id))
    assert await catalog.read(lambda tx: tx.trash.oldest()) is None
