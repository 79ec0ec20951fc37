"""Lists that are asked again and again: never older than the last commit or the last open."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from blockd.domain.listing import Page, SnapshotFilter, VolumeFilter
from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.domain.states import Status
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume, Volume, VolumeChange
from tests.support.service import Running, running


class Renderer:
    """Counts how often it is needed."""

    def __init__(self) -> None:
        self.calls = 0

    def volumes(self, volumes: Sequence[Volume], total: int) -> str:
        self.calls += 1
        return " ".join(f"{volume.name}:{volume.status}" for volume in volumes) + f" of {total}"

    def snapshots(self, snapshots: Sequence[Snapshot], total: int) -> str:
        self.calls += 1
        seen = [f"{item.name}<{item.parent.status if item.parent else None}" for item in snapshots]
        return " ".join(seen) + f" of {total}"


async def made(run: Running) -> Volume:
    new = NewVolume("a", None, 4 * MIB, 5000, (), None, None)
    volume = await run.service.volumes.create(new)
    while (await run.service.volumes.get(volume.id)).status is Status.CREATING:
        await asyncio.sleep(0.005)
    return volume


async def test_unchanged_page_is_rendered_once(tmp_path: Path) -> None:
    renderer = Renderer()
    async with running(tmp_path) as run:
        await made(run)
        pages = [
            await run.service.volumes.page(VolumeFilter(), Page(), renderer.volumes)
            for _ in range(3)
        ]
    assert pages == ["a:available of 1"] * 3
    assert renderer.calls == 1


async def test_page_follows_every_commit_and_every_open_and_close(tmp_path: Path) -> None:
    renderer = Renderer()
    async with running(tmp_path) as run:
        volume = await made(run)
        await run.service.snapshots.create(NewSnapshot(volume.id, "s", None, (), False))

        async def pages() -> tuple[str, str]:
            volumes = run.service.volumes.page(VolumeFilter(), Page(), renderer.volumes)
            snapshots = run.service.snapshots.page(SnapshotFilter(), Page(), renderer.snapshots)
            return await volumes, await snapshots

        assert await pages() == ("a:available of 1", "s<available of 1")
        with open((await run.service.volumes.device(volume.id)).path, "rb"):
            assert await pages() == ("a:in_use of 1", "s<in_use of 1")
        assert await pages() == ("a:available of 1", "s<available of 1")
        await run.service.volumes.change(volume.id, VolumeChange(name="b"))
        assert (await pages())[0] == "b:available of 1"
        await run.service.volumes.delete(volume.id)
        assert await pages() == (" of 0", "s<None of 1")


async def test_pages_of_different_questions_are_kept_apart(tmp_path: Path) -> None:
    renderer = Renderer()
    async with running(tmp_path) as run:
        await made(run)
        asked = [
            (VolumeFilter(name="b"), Page()),
            (VolumeFilter(), Page(number=2)),
            (VolumeFilter(), Page()),
        ]
        seen = [await run.service.volumes.page(*one, renderer.volumes) for one in asked * 2]
    assert seen == [" of 0", " of 1", "a:available of 1"] * 2
