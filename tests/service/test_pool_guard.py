"""The guard's policy over a pool of files: what it does when, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from blockd.config import TrashSection
from blockd.domain.errors import NoRoom, StorageError
from blockd.domain.pool_growth import GrowthBounds, PartBounds
from blockd.domain.pool_state import PoolState
from blockd.domain.states import Status
from blockd.domain.units import GIB, MIB
from blockd.domain.volume import NewVolume, Volume
from blockd.service import pool_guard
from tests.support.file_driver import FileDriver
from tests.support.service import Running, file_config, running

SIZE = 8 * MIB
POOL = 100 * GIB


class Driver(FileDriver):
    """Tells what the guard asks of it. `use` sets how full the pool is."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "sbs", capacity_bytes=POOL)
        self.asked: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
        self.looked = asyncio.Queue[None]()

    def use(self, used_bytes: int, **more: Any) -> None:
        """Somebody writes; the kernel raises an event."""
        self.pool_says = {"used_bytes": used_bytes, **more}
        self.changed.set()

    async def extend_pool(self, size_bytes: int, metadata_bytes: int) -> None:
        """See `FilePool`."""
        more = size_bytes and size_bytes - self.capacity_bytes
        more_metadata = metadata_bytes and metadata_bytes - self.metadata_bytes
        self.asked.put_nowait(("extend", more, more_metadata))
        await super().extend_pool(size_bytes, metadata_bytes)

    async def recount(self) -> None:
        """See `FilePool`."""
        self.asked.put_nowait(("recount", 0, 0))
        await super().recount()

    async def pool_event(self, within_s: float) -> None:
        """See `FilePool`; the guard has looked."""
        self.looked.put_nowait(None)
        await super().pool_event(within_s)

    async def look(self) -> None:
        """Have the guard look once more, and wait until it has."""
        while not self.looked.empty():
            self.looked.get_nowait()
        self.changed.set()
        await self.looked.get()


@asynccontextmanager
async def guarded(
    root: Path, bounds: GrowthBounds | None = None, **trash: Any
) -> AsyncIterator[tuple[Running, Driver]]:
    """A daemon over a pool of 100 GiB whose volume group has none free."""
    driver = Driver(root)
    config = file_config(root).model_copy(update={"trash": TrashSection(**trash)})
    async with running(root, driver=driver, config=config, bounds=bounds) as run:
        await asyncio.wait_for(driver.looked.get(), 10)
        yield run, driver


async def state(run: Running) -> PoolState:
    """Of the only pool."""
    (found,) = await run.service.host.pools()
    return found


async def volume(run: Running, name: str = "v") -> Volume:
    """A volume that is asked for."""
    return await run.service.volumes.create(NewVolume(name, None, SIZE, 5000, (), None, None))


async def made(run: Running, name: str = "v") -> Volume:
    """A volume that is there."""
    asked = await volume(run, name)
    while (await run.service.volumes.get(asked.id)).status is Status.CREATING:
        await asyncio.sleep(0.002)
    return await run.service.volumes.get(asked.id)


async def test_low_pool_is_extended_once_by_the_step(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (run, driver):
        driver.group_free_bytes = 200 * GIB
        driver.use(80 * GIB)
        assert await driver.asked.get() == ("extend", 20 * GIB, 0)
        await driver.look()
        assert driver.asked.empty()
        assert (await state(run)).use.size_bytes == 120 * GIB
        assert (await run.service.host.health()).problems == []


async def test_low_metadata_are_extended(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, driver):
        driver.group_free_bytes = 200 * GIB
        driver.metadata_used_bytes = 720 * MIB
        driver.changed.set()
        assert await driver.asked.get() == ("extend", 0, 512 * MIB)


async def test_pool_without_room_is_told_of_and_lvm_is_not_asked(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (run, driver):
        assert (await state(run)).obstacle.startswith("data: volume group files has 0 B free")
        assert (await run.service.host.health()).problems == []  # nothing is due yet
        driver.use(81 * GIB)
        for _ in range(5):
            await driver.look()
        assert driver.asked.empty()
        (problem,) = (await run.service.host.health()).problems
        assert "cannot be extended (data: volume group files has 0 B free" in problem


async def test_room_that_others_add_is_used_when_the_driver_hears_of_it(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (run, driver):
        driver.use(81 * GIB)
        await driver.look()
        driver.group_free_bytes = 50 * GIB
        driver.changed.set()
        assert await driver.asked.get() == ("extend", 20 * GIB, 0)
        await driver.look()
        assert (await run.service.host.health()).problems == []


async def test_ceiling_of_the_configuration_stops_it_and_is_named(tmp_path: Path) -> None:
    bounds = GrowthBounds(PartBounds(80, 20, 110 * GIB))
    async with guarded(tmp_path, bounds) as (run, driver):
        driver.group_free_bytes = 200 * GIB
        driver.use(95 * GIB)
        assert await driver.asked.get() == ("extend", 10 * GIB, 0)
        await driver.look()
        (problem,) = (await run.service.host.health()).problems
        assert "extend_to is reached: 110 GiB" in problem


async def test_failed_extension_is_told_of_and_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(tmp_path) as (run, driver):
        driver.group_free_bytes = 200 * GIB
        driver.fail_next["extend_pool"] = StorageError("lvextend: a disk is missing")
        driver.use(80 * GIB)
        assert (await driver.asked.get())[0] == "extend"
        for _ in range(5):
            await driver.look()
        assert driver.asked.empty()
        (problem,) = (await run.service.host.health()).problems
        assert "the last extension failed: lvextend: a disk is missing; tried again in" in problem
        ahead = pool_guard.time.monotonic() + 11
        monkeypatch.setattr(pool_guard.time, "monotonic", lambda: ahead)
        driver.changed.set()
        assert await driver.asked.get() == ("extend", 20 * GIB, 0)
        await driver.look()
        assert (await run.service.host.health()).problems == []


async def test_failed_extension_is_tried_at_once_when_others_have_made_room(
    tmp_path: Path,
) -> None:
    async with guarded(tmp_path) as (_, driver):
        driver.group_free_bytes = 200 * GIB
        driver.fail_next["extend_pool"] = StorageError("lvextend: insufficient free space")
        driver.use(80 * GIB)
        assert (await driver.asked.get())[0] == "extend"
        await driver.look()
        assert driver.asked.empty()
        driver.group_free_bytes += GIB
        driver.changed.set()
        assert await driver.asked.get() == ("extend", 20 * GIB, 0)


async def test_what_others_add_while_the_extension_waits_counts_to_the_ceiling(
    tmp_path: Path,
) -> None:
    bounds = GrowthBounds(PartBounds(80, 20, 110 * GIB))
    async with guarded(tmp_path, bounds) as (_, driver):
        driver.group_free_bytes = 200 * GIB
        async with driver.turn():
            driver.use(80 * GIB)
            assert (await driver.asked.get())[0] == "extend"
            driver.capacity_bytes += 5 * GIB
        await driver.look()
        assert driver.capacity_bytes == 110 * GIB


async def test_extension_by_hand_is_noticed_and_room_counted_anew(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, driver):
        driver.capacity_bytes += 10 * GIB
        driver.changed.set()
        assert (await driver.asked.get())[0] == "recount"
        await driver.look()
        assert driver.asked.empty()


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ({"mode": "fail"}, "given up by the kernel"),
        ({"mode": "ro", "needs_check": True}, "need a check"),
        ({"mode": "inactive", "fault": "lvchange: no"}, "lvchange: no"),
        ({"transaction_ids": (3, 4)}, "transaction id 3, LVM expects 4"),
    ],
)
async def test_pool_in_trouble_is_never_extended_and_refuses_with_the_reason(
    tmp_path: Path, trouble: dict[str, Any], told: str
) -> None:
    async with guarded(tmp_path) as (run, driver):
        driver.group_free_bytes = 200 * GIB
        driver.use(99 * GIB, **trouble)
        await driver.look()
        assert driver.asked.empty()
        (problem,) = (await run.service.host.health()).problems
        assert told in problem
        with pytest.raises(NoRoom, match=r"docs/pool-trouble\.md"):
            await volume(run)
        driver.use(0)
        await driver.look()
        assert (await run.service.host.health()).problems == []
        await volume(run)


async def test_transaction_ids_that_only_seemed_to_differ_are_compared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(tmp_path) as (run, driver):
        driver.use(1, transaction_ids=(53, 52))  # as of a look while somebody ran LVM by hand
        recount = driver.recount

        async def compare() -> None:
            await recount()
            driver.use(1)

        monkeypatch.setattr(driver, "recount", compare)
        await volume(run)


async def test_request_above_the_high_water_mark_is_served_by_extending(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (run, driver):
        kept = await made(run)
        await run.service.volumes.delete(kept.id)
        driver.group_free_bytes = 200 * GIB
        driver.pool_says = {"used_bytes": 99 * GIB}  # and the kernel is silent
        await volume(run)
        assert [asked for asked in drained(driver.asked) if asked[0] == "extend"]
        assert await run.catalog.read(lambda tx: tx.volume(kept.id))


async def test_many_refused_requests_ask_lvm_once(tmp_path: Path) -> None:
    async with guarded(tmp_path, policy="refuse") as (run, driver):
        driver.pool_says = {"used_bytes": 99 * GIB}
        for _ in range(10):
            with pytest.raises(NoRoom, match="nothing new above 95 %"):
                await volume(run)
        assert len(drained(driver.asked)) <= 2


@pytest.mark.parametrize("policy", ["trash", "expire"])
async def test_writes_above_the_high_water_mark_erase_the_trash_and_no_more_than_needed(
    tmp_path: Path, policy: str
) -> None:
    async with guarded(tmp_path, policy=policy) as (run, driver):
        gone = [await made(run, f"v{number}") for number in range(6)]
        for each in gone:
            await run.service.volumes.delete(each.id)
        there = len(await driver.disks())

        async def pool(ask: Callable[[], Any] = driver.pool) -> Any:
            erased = there - len(await driver.disks())
            driver.pool_says = {"used_bytes": (99 if erased < 4 else 90) * GIB}
            return await ask()

        driver.pool = pool  # type: ignore[method-assign]
        await driver.look()
        rows = [await run.catalog.read(lambda tx, v=v: tx.volume(v.id)) for v in gone]
        assert [row is None for row in rows] == [True] * 4 + [False] * 2


async def test_writes_above_the_high_water_mark_leave_the_trash_if_that_is_the_policy(
    tmp_path: Path,
) -> None:
    async with guarded(tmp_path, policy="refuse") as (run, driver):
        kept = await made(run)
        await run.service.volumes.delete(kept.id)
        driver.use(99 * GIB)
        await driver.look()
        assert await run.catalog.read(lambda tx: tx.volume(kept.id))


async def test_forecast_counts_what_can_still_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(tmp_path) as (run, driver):
        now = pool_guard.time.monotonic()
        assert (await state(run)).full_in_s is None
        for minute in range(6):
            monkeypatch.setattr(pool_guard.time, "monotonic", lambda at=now + 60 * minute: at)
            driver.use(minute * GIB)
            await driver.look()
        found = await state(run)
        assert found.fill_bytes_s == pytest.approx(GIB / 60, rel=0.02)
        assert found.full_in_s == pytest.approx(95 * 60, rel=0.02)
        driver.group_free_bytes = 101 * GIB
        assert (await state(run)).full_in_s == pytest.approx(195 * 60, rel=0.02)


def drained(queue: asyncio.Queue[Any]) -> list[Any]:
    """All that is in it."""
    return [queue.get_nowait() for _ in range(queue.qsize())]
