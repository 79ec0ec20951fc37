"""What is told of volumes that are opened and closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockd.domain.errors import CatalogUnavailable
from blockd.domain.event import Event, EventFilter, Place
from blockd.service.use_watch import UseWatch
from tests.support.guests import a_volume
from tests.support.service import Running, running


async def told_since(run: Running, place: Place | None) -> tuple[list[Event], Place]:
    news = await run.service.events.since(place, EventFilter())
    return list(news.events), news.place


async def test_opened_and_closed_volume_is_told_of_once_each(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        volume, _ = await a_volume(run), await a_volume(run, "other")
        path = Path((await run.service.volumes.device(volume.id)).path)
        watch = UseWatch(run.catalog, run.classes)
        await watch.look()
        _, place = await told_since(run, None)
        with path.open("rb"):
            for _ in range(2):
                await watch.look()
            events, place = await told_since(run, place)
            (told,) = events
            assert (told.resource_id, told.status) == (volume.id, "in_use")
            assert told.resource is not None
            assert told.resource.status == "in_use"
        for _ in range(2):
            await watch.look()
        events, _ = await told_since(run, place)
        assert [(one.resource_id, one.status) for one in events] == [(volume.id, "available")]


async def test_what_could_not_be_told_is_told_with_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as run:
        volume = await a_volume(run)
        watch = UseWatch(run.catalog, run.classes)
        await watch.look()
        _, place = await told_since(run, None)
        with Path((await run.service.volumes.device(volume.id)).path).open("rb"):
            with monkeypatch.context() as patch:
                patch.setattr(run.catalog, "write", _full)
                with pytest.raises(CatalogUnavailable):
                    await watch.look()
            await watch.look()
            events, _ = await told_since(run, place)
        assert [(one.resource_id, one.status) for one in events] == [(volume.id, "in_use")]


async def _full(*_: object) -> None:
    raise CatalogUnavailable("no space left")


async def test_volume_opened_before_it_was_ever_looked_at_is_told_of(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        watch = UseWatch(run.catalog, run.classes)
        await watch.look()
        volume = await a_volume(run)
        _, place = await told_since(run, None)
        with Path((await run.service.volumes.device(volume.id)).path).open("rb"):
            await watch.look()
            events, _ = await told_since(run, place)
        assert [(one.resource_id, one.status) for one in events] == [(volume.id, "in_use")]


async def test_volume_open_at_the_first_look_is_no_news(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        volume = await a_volume(run)
        _, place = await told_since(run, None)
        with Path((await run.service.volumes.device(volume.id)).path).open("rb"):
            await UseWatch(run.catalog, run.classes).look()
            assert (await told_since(run, place))[0] == []
