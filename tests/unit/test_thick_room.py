"""The thick driver over a model of LVM and the kernel: room for reverts, and room that comes."""

from __future__ import annotations

import pytest

from blockd.domain.errors import StorageError, StorageOverdue
from blockd.domain.units import GIB, MIB
from blockd.host.command import Output
from blockd.storage.lvm_commands import LvmFailed
from blockd.storage.lvm_thick import LvmThick
from tests.support.thick_kernel import EXTENT, Model, modelled

SIZE = 512 * MIB
SMALL = {"least_store_bytes": 8 * MIB}


async def with_snapshots(driver: LvmThick, *snapshots: str, size_bytes: int = SIZE) -> None:
    """A volume `v` and its snapshots."""
    async with driver.turn():
        await driver.create("v", size_bytes)
        for snapshot in snapshots:
            await driver.snapshot(snapshot, "v", None)


def fill(model: Model, *, but_bytes: int = 0) -> None:
    """Somebody takes what is free."""
    model.size_bytes -= model.free_bytes - but_bytes


# room for a revert


async def test_revert_of_a_grown_volume_needs_the_room_of_its_larger_snapshot() -> None:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver, "s")
        async with driver.turn():
            assert await driver.revert_bytes("v", "s", keep=False) == 0
            model.lvs_there["v"].size_bytes *= 10
            first = driver.snapshot_bytes(10 * SIZE)
            store = model.lvs_there["s"].size_bytes
            assert await driver.revert_bytes("v", "s", keep=False) == first - store > 0


async def test_revert_after_the_share_was_raised_needs_the_room_of_the_larger_store() -> None:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver, "s")
    before = model.lvs_there["s"].size_bytes
    async with modelled(model, **SMALL, first_percent=50.0) as driver, driver.turn():
        needed = await driver.revert_bytes("v", "s", keep=False)
        assert needed == SIZE // 2 - before


async def test_snapshot_is_taken_again_in_what_room_there_is() -> None:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver)
        fill(model, but_bytes=2 * EXTENT)  # somebody else's doing: the driver has not heard of it
        async with driver.turn():
            await driver.snapshot("s", "v", None)
        assert model.lvs_there["s"].size_bytes == 2 * EXTENT
        async with driver.turn():
            with pytest.raises(StorageError, match="insufficient"):
                await driver.snapshot("t", "v", None)
            model.size_bytes += 3 * EXTENT
            await driver.snapshot("t", "v", None)
        assert model.lvs_there["t"].size_bytes == 3 * EXTENT


async def test_snapshot_is_taken_again_in_an_extent_where_the_free_ones_may_not_be_used() -> None:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver)
        model.barred_bytes = model.free_bytes - 2 * EXTENT
        async with driver.turn():
            await driver.snapshot("s", "v", None)
        assert model.lvs_there["s"].size_bytes == EXTENT


# a store keeps the chunk it was made with


async def test_reserve_counts_what_a_merge_writes_in_the_chunks_of_both() -> None:
    """A chunk of 4 KiB that goes back costs a sibling of larger chunks a whole one."""
    model = Model(100 * GIB)
    async with modelled(model, **SMALL, chunk_bytes=65536, first_percent=1.0) as driver:
        await with_snapshots(driver, "large", size_bytes=100 * GIB // 10)
    async with modelled(model, **SMALL, chunk_bytes=4096, first_percent=1.0) as driver:
        await driver._finding.find()
        async with driver.turn():
            await driver.snapshot("small", "v", None)
            small = model.lvs_there["small"]
            chunks = 20000
            small.used_sectors += chunks * 8
            await driver.reserve_for_revert("v", "small")
            assert model.lvs_there["large"].size_bytes >= chunks * 65536
            # And the other way round: no chunk of the small one is written twice.
            small.used_sectors = 16
            model.lvs_there["large"].used_sectors += 4000 * 128
            await driver.reserve_for_revert("v", "large")
            assert 4000 * 65536 <= small.size_bytes < 4100 * 65536


async def test_store_is_watched_with_the_chunk_it_was_made_with() -> None:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL, chunk_bytes=4096) as driver:
        await with_snapshots(driver, "s", size_bytes=40 * GIB)
    ceiling = driver._sizes.ceiling(40 * GIB)
    store = model.lvs_there["s"]
    # In chunks of 512 KiB this would hold all of the origin; in its own it does not.
    store.size_bytes = ceiling - 10 * EXTENT
    store.used_sectors = (store.size_bytes - EXTENT) // 512
    async with modelled(model, **SMALL, chunk_bytes=512 * 1024) as driver:
        await driver._finding.find()
        await driver._watch._look("s", driver._watch._stores["s"])
        assert store.size_bytes == ceiling


# what is not there is not merged


async def test_reserve_for_a_snapshot_that_is_gone_is_an_error() -> None:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver, "s")
        model.drop("s")
        async with driver.turn():
            with pytest.raises(StorageError, match="there is no snapshot"):
                await driver.reserve_for_revert("v", "s")


async def test_reserve_for_a_snapshot_that_was_put_away_activates_its_origin() -> None:
    model = Model(100 * GIB)
    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver, "s")
        for lv in model.lvs_there.values():
            lv.is_active = False
        async with driver.turn():
            await driver.reserve_for_revert("v", "s")
        assert model.lvs_there["s"].is_active


# LVM that does something, and says that it did not, or nothing yet


@pytest.mark.parametrize("what", ["volume", "store"])
async def test_growth_that_lvm_reports_as_failed_is_there_if_the_kernel_has_it(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(100 * GIB)
    extend = model.extend

    async def extend_and_fail(lv: str, size_bytes: int) -> None:
        await extend(lv, size_bytes)
        raise LvmFailed("lvextend", Output(139, b"", b""))

    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver, *(["s"] if what == "store" else []))
        monkeypatch.setattr(model, "extend", extend_and_fail)
        async with driver.turn():
            if what == "store":
                await driver._revert.extend_store("s", 2 * GIB)
            else:
                await driver.grow("v", 2 * GIB)
        assert (await driver.pool()).free_bytes == model.free_bytes


async def test_growth_that_is_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(100 * GIB)

    async def refuse(lv: str, size_bytes: int) -> None:
        raise LvmFailed("lvextend", Output(5, b"", f"not {lv} to {size_bytes}".encode()))

    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver, "s")
        monkeypatch.setattr(model, "extend", refuse)
        async with driver.turn():
            with pytest.raises(LvmFailed, match="not s to"):
                await driver._revert.extend_store("s", 2 * GIB)


async def test_lvm_is_not_asked_what_is_free_while_it_still_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model(100 * GIB)

    async def hang(lv: str, size_bytes: int) -> None:
        raise StorageOverdue(f"lvextend of {lv} to {size_bytes} did not end within 4 s")

    async with modelled(model, **SMALL) as driver:
        await with_snapshots(driver)
        monkeypatch.setattr(model, "extend", hang)
        model.commands.clear()
        async with driver.turn():
            with pytest.raises(StorageOverdue):
                await driver.grow("v", 2 * GIB)
        assert model.commands == []
        async with driver.turn():
            await driver.create("w", SIZE)
        assert model.commands[:2] == ["vgs", "lvcreate"]  # what is free has to be counted anew
