"""Snapshots of several volumes at one instant: all of them or none, whatever happens."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blockd.domain.effects import SideEffects
from blockd.domain.errors import (
    GroupFailed,
    GuestRefused,
    NoRoom,
    NotFound,
    StorageError,
    TransientState,
)
from blockd.domain.intent import new_id
from blockd.domain.snapshot import Quiesce
from blockd.domain.states import Status
from blockd.domain.volume import VolumeChange
from blockd.service.groups import Groups
from tests.service.group_rig import SIZE, expect_bytes, group_of, host
from tests.support import stamps
from tests.support.service import DRIVERS


class Images(SideEffects):
    """Copies the directory before and after every event, once armed: what a kill leaves."""

    def __init__(self, root: Path, images: Path) -> None:
        self._root, self._images = root, images
        self.armed = False
        self.taken: dict[str, Path] = {}

    def before(self, name: str) -> None:
        self._take(f"before {name}")

    def after(self, name: str) -> None:
        self._take(f"after {name}")

    def _take(self, event: str) -> None:
        if not self.armed:
            return
        image = self._images / str(len(self.taken))
        subprocess.run(["cp", "-a", "--sparse=always", self._root, image], check=True)
        (image / "catalog.sqlite-shm").unlink(missing_ok=True)
        for name in DRIVERS:
            for link in (image / name / "dev").iterdir():  # they lead to the disks of this image
                disk = link.readlink().name
                link.unlink()
                link.symlink_to(image / name / "disks" / disk)
        self.taken[f"{len(self.taken)} {event}"] = image


class Refusing(SideEffects):
    """Storage refuses so many snapshots from the fifth on, say; each of them or every second."""

    def __init__(self, first: int, count: int, step: int = 1) -> None:
        self.error = StorageError("the disk is on fire")
        self._refused, self._seen = range(first, first + count, step), 0

    def before(self, name: str) -> None:
        if name == "file snapshot":
            self._seen += 1
            if self._seen in self._refused:
                raise self.error


async def test_group_over_both_classes_is_taken_in_the_order_named(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        volumes = [
            await run.volume(name, generation)
            for generation, name in enumerate(("sbs", "bssd", "sbs"), 1)
        ]
        group = await run.service.groups.create(group_of(*volumes))
        assert [row.volume_id for row in group.snapshots] == volumes
        assert [row.name for row in group.snapshots] == ["night-1", "night-2", "night-3"]
        assert {row.status for row in group.snapshots} == {Status.AVAILABLE}
        assert {row.group_id for row in group.snapshots} == {group.id}
        assert group.suspended_ms is not None
        for generation, row in enumerate(group.snapshots, 1):
            await expect_bytes(run, row, generation)
            seen = await run.service.snapshots.get(row.id)
            assert (seen.group_id, seen.suspended_ms) == (group.id, group.suspended_ms)
        assert await run.service.groups.get(group.id) == group
        await run.expect_quiet()


@pytest.mark.parametrize("count", [2, 1000], ids=["twice", "for good"])
async def test_failure_in_the_fifth_of_eight_leaves_all_or_none(tmp_path: Path, count: int) -> None:
    async with host(tmp_path, Refusing(5, count)) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd") * 4]
        with pytest.raises(GroupFailed, match="the disk is on fire"):
            await run.service.groups.create(group_of(*volumes))
        await run.expect_nothing_left(8)


async def test_failure_that_passes_takes_all_anew(tmp_path: Path) -> None:
    async with host(tmp_path, Refusing(5, 1)) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd") * 4]
        group = await run.service.groups.create(group_of(*volumes))
        assert len(group.snapshots) == 8
        for row in group.snapshots:
            await expect_bytes(run, row, 1)


async def test_daemon_killed_at_any_step_leaves_all_of_one_instant_or_none(
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    effects = Images(tmp_path / "run", tmp_path / "images")
    async with host(tmp_path / "run", effects) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd", "sbs")]
        effects.armed = True
        await run.service.groups.create(group_of(*volumes))
        effects.armed = False
    events = [event.partition(" ")[2] for event in effects.taken]
    assert events.count("before file snapshot") == 3
    assert "after commit group created" in events
    outcomes = [await _next_start(image, event) for event, image in effects.taken.items()]
    assert set(outcomes) == {(), (1,), (2,)}, "not every kind of end was seen"


async def _next_start(image: Path, event: str) -> tuple[int, ...]:
    """What the snapshots hold in the end: 1 if they were taken before the kill, 2 if after it."""
    for name in DRIVERS:
        for path in (image / name / "dev").iterdir():
            stamps.stamp(path, 2)
    async with host(image) as run:
        await run.idle()
        rows = await run.snapshots()
        assert len(rows) in (0, 3), event
        assert {row.status for row in rows} <= {Status.AVAILABLE}, event
        held = set[int]()
        for row in rows:
            async with run.drivers[row.storage_class].reading(row.disk) as disk:
                with stamps.opened(disk.path) as device:
                    held.update(device.generations(0, SIZE))
        assert len(held) <= 1, (event, held)
        await run.expect_quiet()
        disks = [disk for driver in run.drivers.values() for disk in await driver.disks()]
        assert len(disks) == 3 + len(rows), event
        return tuple(held)


async def test_group_answers_as_begun_when_a_class_stays_busy(tmp_path: Path) -> None:
    async with host(tmp_path, patience_s=0.1) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd")]
        async with run.drivers["bssd"].turn():
            group = await run.service.groups.create(group_of(*volumes))
            assert group.suspended_ms is None
            assert {row.status for row in group.snapshots} == {Status.CREATING}
            assert not run.drivers["sbs"].stands_still
        await run.idle()
        group = await run.service.groups.get(group.id)
        assert {row.status for row in group.snapshots} == {Status.AVAILABLE}
        assert group.suspended_ms is not None


async def test_request_that_is_cancelled_lets_the_group_be_taken(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd")]
        gate = run.drivers["bssd"].gates["snapshot"] = asyncio.Event()
        asked = asyncio.create_task(run.service.groups.create(group_of(*volumes)))
        async with asyncio.timeout(20):
            while not run.drivers["bssd"].stands_still:
                await asyncio.sleep(0.005)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        gate.set()
        await run.idle()
        assert {row.status for row in await run.snapshots()} == {Status.AVAILABLE}
        await run.expect_quiet()


async def test_groups_of_the_same_volumes_in_any_order_do_not_wait_for_each_other_for_ever(
    tmp_path: Path,
) -> None:
    async with host(tmp_path) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd", "sbs")]
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for turn in range(3):
                asked = group_of(*volumes[turn:], *volumes[:turn])
                tasks.create_task(run.service.groups.create(asked))
        assert len(await run.snapshots()) == 9
        await run.expect_quiet()


async def test_thick_class_without_room_for_all_refuses_before_anything_is_begun(
    tmp_path: Path,
) -> None:
    async with host(tmp_path) as run:
        volumes = [await run.volume("bssd", 1) for _ in range(3)]
        driver = run.drivers["bssd"]
        one_bytes = driver.snapshot_bytes(SIZE)
        driver.capacity_bytes = 3 * driver.volume_bytes(SIZE) + 2 * one_bytes
        with pytest.raises(NoRoom):
            await run.service.groups.create(group_of(*volumes))
        await run.expect_nothing_left(3)
        await run.service.groups.create(group_of(*volumes[:2]))


async def test_group_with_a_volume_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        there = await run.volume("sbs", 1)
        with pytest.raises(NotFound):
            await run.service.groups.create(group_of(there, new_id()))
        await run.expect_nothing_left(1)


async def test_missing_volume_is_told_before_guests_are_asked(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        with pytest.raises(NotFound):
            await run.service.groups.create(group_of(new_id(), quiesce=Quiesce.REQUIRE))


async def test_require_without_a_guest_is_refused(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        there = await run.volume("sbs", 1)
        with pytest.raises(GuestRefused, match="quiesce"):
            await run.service.groups.create(group_of(there, quiesce=Quiesce.REQUIRE))
        await run.expect_nothing_left(1)


async def test_snapshot_of_a_group_that_is_deleted_leaves_the_others(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        volumes = [await run.volume(name, 1) for name in ("sbs", "bssd")]
        first, second = (await run.service.groups.create(group_of(*volumes))).snapshots
        await run.service.snapshots.delete(first.id)
        group = await run.service.groups.get(first.group_id or "")
        assert [row.id for row in group.snapshots] == [second.id]
        await run.service.snapshots.delete(second.id)
        with pytest.raises(NotFound):
            await run.service.groups.get(group.id)


@pytest.mark.parametrize("times", [2, 3])
async def test_failure_that_is_remedied_is_tried_again_though_something_was_removed(
    tmp_path: Path, times: int
) -> None:
    effects = Refusing(2, 2 * times - 1, step=2)
    async with host(tmp_path, effects) as run:
        run.drivers["sbs"].remedied.append(effects.error)
        volumes = [await run.volume("sbs", 1) for _ in range(2)]
        group = await run.service.groups.create(group_of(*volumes))
        assert {row.status for row in group.snapshots} == {Status.AVAILABLE}
        await run.expect_quiet()


async def test_group_with_a_volume_in_the_trash_or_being_changed_is_refused(tmp_path: Path) -> None:
    async with host(tmp_path) as run:
        there, gone, changing = [await run.volume("sbs", 1) for _ in range(3)]
        await run.service.volumes.delete(gone)
        gate = run.drivers["sbs"].gates["grow"] = asyncio.Event()
        await run.service.volumes.change(changing, VolumeChange(size_bytes=2 * SIZE))
        for volume, refusal in ((gone, NotFound), (changing, TransientState)):
            with pytest.raises(refusal):
                await run.service.groups.create(group_of(there, volume))
        gate.set()
        await run.expect_nothing_left(3)


async def test_request_is_told_when_what_failed_is_deleted_before_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host(tmp_path, Refusing(1, 1000)) as run:
        volume = await run.volume("sbs", 1)
        outcome = Groups._outcome

        async def delayed(*args: Any) -> Any:
            for row in await run.snapshots():
                await run.service.snapshots.delete(row.id)
            return await outcome(*args)

        monkeypatch.setattr(Groups, "_outcome", delayed)
        with pytest.raises(NotFound):
            await run.service.groups.create(group_of(volume))
