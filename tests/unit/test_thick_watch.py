"""Which stores the thick driver watches, over a model of LVM and the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from blockd.domain.errors import HostExhausted, StorageError, StorageOverdue
from blockd.domain.units import GIB, MIB
from blockd.storage import cow_finding, cow_watch
from blockd.storage.lvm_report import LogicalVolume
from tests.support.thick_kernel import Model, modelled

SIZE = 512 * MIB
SMALL = {"least_store_bytes": 8 * MIB}


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.01)


async def with_three_snapshots() -> Model:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL) as driver, driver.turn():
        await driver.create("v", SIZE)
        for snapshot in ("a", "b", "c"):
            await driver.snapshot(snapshot, "v", None)
    return model


async def test_odd_snapshot_keeps_no_other_unwatched_and_is_watched_when_it_is_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cow_finding, "_AGAIN_S", 0.05)
    model = await with_three_snapshots()
    model.odd.add("a")
    model.lvs_there["b"].table = "N"
    async with modelled(model, is_watching=True, **SMALL) as driver:
        problems = await driver.start([])
        assert [problem.split(" is not watched")[0] for problem in problems] == [
            "class bssd: snapshot a",
            "class bssd: snapshot b",
        ]
        assert driver._watch.snapshots() == ["c"]
        model.odd.clear()
        await until(lambda: "a" in driver._watch)
        model.lvs_there["b"].table = "P 8"
        await until(lambda: "b" in driver._watch)
        asked = model.commands.count("lvs")
        await asyncio.sleep(0.2)
        assert model.commands.count("lvs") == asked  # all are: nothing more is asked


async def test_snapshot_that_is_lost_is_told_once_however_often_others_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cow_finding, "_AGAIN_S", 0.02)
    model = await with_three_snapshots()
    model.odd.add("a")
    model.lvs_there["b"].fault = "Invalid"
    async with modelled(model, is_watching=True, **SMALL) as driver:
        await driver.start([])
        losses = driver.losses()
        assert (await anext(losses))[0] == "b"
        asked = model.commands.count("lvs")
        await until(lambda: model.commands.count("lvs") > asked + 2)
        assert driver._watch._lost.empty()


# a merge that does not come about


@pytest.mark.parametrize(
    "error",
    [
        HostExhausted("lvconvert cannot be started: Too many open files"),
        StorageOverdue("lvconvert did not end within 10 s"),
        StorageError("lvconvert: no device node"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_snapshot_that_is_not_marked_for_merging_is_watched_as_before(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model = await with_three_snapshots()
    async with modelled(model, **SMALL) as driver:
        await driver.start([])

        async def mark(*_: object) -> None:
            raise error

        monkeypatch.setattr(driver._revert, "_mark", mark)
        with pytest.raises(type(error)):
            await driver.begin_merge("v", "a")
        assert driver._watch.snapshots() == ["a", "b", "c"]


async def test_snapshot_that_is_marked_for_merging_is_not_watched_when_the_kernel_merges_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = await with_three_snapshots()
    watched: list[list[str]] = []
    async with modelled(model, **SMALL) as driver:
        await driver.start([])

        async def mark(*_: object) -> None:
            model.lvs_there["a"].is_merging = True

        async def refresh(_: str) -> None:
            watched.append(driver._watch.snapshots())

        monkeypatch.setattr(driver._revert, "_mark", mark)
        monkeypatch.setattr(model, "refresh", refresh, raising=False)
        with pytest.raises(StorageError, match="but the kernel does not merge"):
            await driver.begin_merge("v", "a")
    assert watched == [["b", "c"]]


async def test_looking_after_a_removal_that_failed_does_not_outlast_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = await with_three_snapshots()
    steps: list[str] = []
    async with modelled(model, **SMALL) as driver:
        await driver.start([])

        async def refused(*_: object) -> None:
            raise StorageError("lvremove: refused")

        async def look_for_ever() -> list[LogicalVolume]:
            steps.append("looks")
            try:
                await asyncio.Event().wait()
            finally:
                steps.append("has looked")
            return []

        async def erase() -> None:
            try:
                await driver.erase(["a"])
            finally:
                steps.append("the turn ends")

        monkeypatch.setattr(model, "remove", refused, raising=False)
        monkeypatch.setattr(driver._finding, "_lvs", look_for_ever)
        erasing = asyncio.create_task(erase())
        await until(lambda: "looks" in steps)
        erasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await erasing
    assert steps == ["looks", "has looked", "the turn ends"]


# room that others give


async def test_store_grows_into_room_that_somebody_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cow_watch, "_RECOUNT_S", 0.3)
    monkeypatch.setattr(cow_watch, "_MOST_WAIT_S", 0.02)
    model = Model(100 * GIB)
    async with modelled(model, is_watching=True, **SMALL) as driver:
        async with driver.turn():
            await driver.create("v", SIZE)
            await driver.snapshot("s", "v", None)
            await driver.create("filler", model.free_bytes)
        store = model.lvs_there["s"]
        first_bytes = store.size_bytes
        store.used_sectors = store.size_bytes // 512 * 9 // 10
        driver._watch.look_now()
        refused = driver._watch._stores["s"]
        await until(lambda: refused.refused_at_bytes is not None)
        asked = model.commands.count("vgs")
        await asyncio.sleep(0.2)
        assert model.commands.count("vgs") <= asked + 1  # not each time it is looked at
        model.size_bytes += GIB
        await until(lambda: store.size_bytes > first_bytes)


async def test_room_that_came_before_a_store_was_low_is_found_before_growth_is_refused() -> None:
    model = Model(100 * GIB)
    async with modelled(model, is_watching=True, **SMALL) as driver:
        async with driver.turn():
            await driver.create("v", SIZE)
            await driver.snapshot("s", "v", None)
            await driver.create("filler", model.free_bytes)
        model.size_bytes += GIB
        store = model.lvs_there["s"]
        first_bytes = store.size_bytes
        store.used_sectors = store.size_bytes // 512 * 9 // 10
        watched = driver._watch._stores["s"]
        await driver._watch._look("s", watched)
        assert store.size_bytes > first_bytes
        assert watched.refused_at_bytes is None


async def test_recount_notices_room_that_somebody_added() -> None:
    model = Model(10 * GIB)
    async with modelled(model) as driver:
        model.size_bytes += GIB
        assert (await driver.pool()).free_bytes == 10 * GIB
        await driver.recount()
        assert (await driver.pool()).free_bytes == 11 * GIB
