"""What trouble took is had again when the trouble has ended, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import pytest

from blockd.domain.states import Status
from blockd.domain.volume import NewVolume, Volume
from tests.support import stamps
from tests.support.service import DRIVERS, Running, running

SIZE = 4 * 1024**2


@pytest.fixture(params=DRIVERS)
def storage_class(request: pytest.FixtureRequest) -> str:
    """Each class in turn."""
    return str(request.param)


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await what():
            await asyncio.sleep(0.005)


async def stamped_volume(run: Running) -> Volume:
    volume = await run.service.volumes.create(NewVolume("v", None, SIZE, 5000, (), None, None))

    async def is_made() -> bool:
        return (await run.service.volumes.get(volume.id)).status is Status.AVAILABLE

    await until(is_made)
    stamps.stamp((await run.service.volumes.device(volume.id)).path, 1)
    return await run.service.volumes.get(volume.id)


async def problems(run: Running) -> list[str]:
    return (await run.service.host.health()).problems


class Hidden:
    """The disk and front of a volume, taken away behind the daemon's back while it is down."""

    def __init__(self, root: Path, volume: Volume) -> None:
        self._tag, self._aside = root / "tags" / volume.disk, root / "aside"
        self._tag.rename(self._aside)
        (root / "dev" / volume.id).unlink()

    def bring_back(self) -> None:
        """As it was."""
        self._aside.rename(self._tag)


class Gate(asyncio.Event):
    """Tells when somebody stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.reached.set()
        return await super().wait()


async def test_disk_that_is_missing_at_start_gets_its_front_when_it_comes_back(
    tmp_path: Path, storage_class: str
) -> None:
    async with running(tmp_path, default_class=storage_class) as run:
        volume = await stamped_volume(run)
    hidden = Hidden(tmp_path / storage_class, volume)
    async with running(tmp_path, default_class=storage_class) as run:
        assert await problems(run) == [f"volume {volume.id}: {volume.disk} is missing"]
        hidden.bring_back()

        async def is_well() -> bool:
            return await problems(run) == []

        await until(is_well)
        stamps.expect((await run.service.volumes.device(volume.id)).path, 1)
        assert await run.driver.disk_behind(volume.id) == volume.disk


async def test_volume_deleted_while_its_front_is_set_up_again_has_none_in_the_end(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        volume = await stamped_volume(run)
    hidden = Hidden(tmp_path / "sbs", volume)
    async with running(tmp_path) as run:
        gate = run.driver.gates["connect"] = Gate()
        hidden.bring_back()
        async with asyncio.timeout(20):
            await gate.reached.wait()
        await run.service.volumes.delete(volume.id)
        gate.set()

        async def is_well() -> bool:
            return await problems(run) == []

        await until(is_well)
        async with run.driver.turn():
            assert await run.driver.disk_behind(volume.id) is None
        await run.service.volumes.undelete(volume.id)
        stamps.expect((await run.service.volumes.device(volume.id)).path, 1)
