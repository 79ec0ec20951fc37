"""Disks that are gone, and those that come back, are told in the stream of events, once each."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockd.domain.errors import CatalogUnavailable
from blockd.domain.event import Event, EventFilter, Place
from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.domain.volume import Volume
from blockd.service.use_watch import UseWatch
from tests.service.test_upkeep import Hidden
from tests.support.guests import a_volume, is_well, until
from tests.support.service import DRIVERS, Running, idle, running


@pytest.fixture(params=DRIVERS)
def storage_class(request: pytest.FixtureRequest) -> str:
    """Each class in turn."""
    return str(request.param)


async def a_pair(run: Running) -> tuple[Volume, Snapshot]:
    """A volume, and a snapshot of it."""
    volume = await a_volume(run)
    made = await run.service.snapshots.create(NewSnapshot(volume.id, None, None, (), False))
    await idle(run)
    return volume, await run.service.snapshots.get(made.id)


async def told(run: Running, place: Place | None) -> tuple[list[Event], Place]:
    """What was told since."""
    news = await run.service.events.since(place, EventFilter())
    return list(news.events), news.place


def lines(events: list[Event]) -> set[tuple[str, str, str]]:
    found = [(str(one.kind), one.resource_id, str(one.status)) for one in events]
    assert len(found) == len(set(found)), "told twice"
    return set(found)


async def look(run: Running) -> None:
    """As after trouble of the driver's, twice, which changes nothing."""
    for _ in range(2):
        run.driver.trouble.set()
        await until(lambda: _has_looked(run))
        async with run.driver.turn():
            pass


async def _has_looked(run: Running) -> bool:
    return not run.driver.trouble.is_set()


async def test_disks_that_go_and_come_back_are_told_once_each(
    tmp_path: Path, storage_class: str
) -> None:
    async with running(tmp_path, default_class=storage_class) as run:
        volume, snapshot = await a_pair(run)
        _, place = await told(run, None)
        root = tmp_path / storage_class
        gone = Hidden(root, volume), Hidden(root, snapshot, "aside-too")
        await look(run)
        events, place = await told(run, place)
        assert lines(events) == {
            ("volume", volume.id, "error"),
            ("snapshot", snapshot.id, "error"),
        }
        for event in events:
            assert event.resource is not None
            assert event.resource.status == "error"
            assert "somebody removed or renamed it" in str(event.resource.error)
        for one in gone:
            one.bring_back()
        await look(run)
        events, _ = await told(run, place)
        assert lines(events) == {
            ("volume", volume.id, "available"),
            ("snapshot", snapshot.id, "available"),
        }
        assert {one.resource.status for one in events if one.resource} == {"available"}


async def test_disk_that_goes_and_comes_back_while_nobody_looks_is_told_by_the_next_start(
    tmp_path: Path, storage_class: str
) -> None:
    async with running(tmp_path, default_class=storage_class) as run:
        volume = await a_volume(run)
        _, place = await told(run, None)
    gone = Hidden(tmp_path / storage_class, volume)
    for expected in ({("volume", volume.id, "error")}, set[tuple[str, str, str]]()):
        async with running(tmp_path, default_class=storage_class) as run:
            events, place = await told(run, place)
            assert lines(events) == expected
    gone.bring_back()
    async with running(tmp_path, default_class=storage_class) as run:
        events, _ = await told(run, place)
        assert lines(events) == {("volume", volume.id, "available")}


async def test_what_could_not_be_told_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as run:
        volume = await a_volume(run)
        _, place = await told(run, None)
        write, failed = run.catalog.write, list[str]()

        async def write_badly(label: str, change: object) -> object:
            if label == "disks gone or back told" and not failed:
                failed.append(label)
                raise CatalogUnavailable("no space left")
            return await write(label, change)  # type: ignore[arg-type]

        monkeypatch.setattr(run.catalog, "write", write_badly)
        gone = Hidden(tmp_path / "sbs", volume)
        run.driver.trouble.set()
        await until(lambda: _is_told(run, place))
        assert failed
        gone.bring_back()
        run.driver.trouble.set()
        await until(lambda: is_well(run))


async def _is_told(run: Running, place: Place) -> bool:
    return bool((await told(run, place))[0])


async def test_volume_without_its_disk_is_not_told_of_as_opened_or_closed(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        volume = await a_volume(run)
        watch = UseWatch(run.catalog, run.classes)
        with Path((await run.service.volumes.device(volume.id)).path).open("rb"):
            await watch.look()
            Hidden(tmp_path / "sbs", volume)
            await look(run)
            _, place = await told(run, None)
            await watch.look()
        await watch.look()
        assert (await told(run, place))[0] == []
