"""What trouble took is had again when the trouble has ended, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import pytest

from blockd.domain.errors import PreconditionFailed, StorageError
from blockd.domain.listing import Page, SnapshotFilter, VolumeFilter
from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.domain.states import Status
from blockd.domain.volume import NewVolume, Volume, VolumeChange
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


async def is_well(run: Running) -> bool:
    return await problems(run) == []


class Hidden:
    """A disk and its front, taken away behind the daemon's back."""

    def __init__(self, root: Path, row: Volume | Snapshot, aside: str = "aside") -> None:
        self._tag, self._aside = root / "tags" / row.disk, root / aside
        self._tag.rename(self._aside)
        (root / "dev" / row.id).unlink(missing_ok=True)

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
        assert await problems(run) == [f"volume {volume.id}: its LV {volume.disk} is gone"]
        assert (await run.service.volumes.get(volume.id)).status is Status.ERROR
        hidden.bring_back()
        run.driver.trouble.set()
        await until(lambda: is_well(run))
        stamps.expect((await run.service.volumes.device(volume.id)).path, 1)
        assert await run.driver.disk_behind(volume.id) == volume.disk


async def test_front_that_cannot_be_had_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        volume = await stamped_volume(run)
        run.driver.fail_next["start"] = StorageError("the disk is on fire")
        (tmp_path / "sbs" / "dev" / volume.id).unlink()
        run.driver.trouble.set()

        async def is_ill() -> bool:
            return await problems(run) == ["the disk is on fire"]

        await until(is_ill)
        await until(lambda: is_well(run))
        stamps.expect((await run.service.volumes.device(volume.id)).path, 1)


async def test_volume_whose_disk_is_gone_is_in_error_refuses_all_and_can_be_deleted(
    tmp_path: Path, storage_class: str
) -> None:
    async with running(tmp_path, default_class=storage_class) as run:
        volumes, snapshots = run.service.volumes, run.service.snapshots
        volume = await stamped_volume(run)
        snapshot = await snapshots.create(NewSnapshot(volume.id, "s", None, (), False))

        async def is_taken() -> bool:
            return (await snapshots.get(snapshot.id)).status is Status.AVAILABLE

        await until(is_taken)
        listed = VolumeFilter(), Page(size=10), lambda rows, _: ",".join(row.status for row in rows)
        assert await volumes.page(*listed) == "available"
        gone = Hidden(tmp_path / storage_class, volume)
        run.driver.trouble.set()

        async def is_seen() -> bool:
            return (await volumes.get(volume.id)).status is Status.ERROR

        await until(is_seen)
        assert await volumes.page(*listed) == "error"
        seen = await volumes.get(volume.id)
        assert seen.error is not None
        assert "somebody removed or renamed it" in seen.error
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: snapshots.create(NewSnapshot(volume.id, "t", None, (), False)),
            lambda: volumes.change(volume.id, VolumeChange(size_bytes=2 * SIZE)),
            lambda: volumes.revert(volume.id, snapshot.id, False),
            lambda: volumes.device(volume.id),
        ]
        for verb in refused:
            with pytest.raises(PreconditionFailed, match="somebody removed or renamed it"):
                await verb()
        renamed = await volumes.change(volume.id, VolumeChange(name="other"))
        assert (renamed.name, renamed.status) == ("other", Status.ERROR)
        await volumes.delete(volume.id)
        with pytest.raises(PreconditionFailed, match="somebody removed or renamed it"):
            await volumes.undelete(volume.id)
        gone.bring_back()
        run.driver.trouble.set()
        await until(lambda: is_well(run))
        await volumes.undelete(volume.id)
        stamps.expect((await volumes.device(volume.id)).path, 1)


async def test_snapshot_whose_disk_is_gone_is_in_error_refuses_all_and_can_be_deleted(
    tmp_path: Path, storage_class: str
) -> None:
    async with running(tmp_path, default_class=storage_class) as run:
        volumes, snapshots = run.service.volumes, run.service.snapshots
        volume = await stamped_volume(run)
        snapshot = await snapshots.create(NewSnapshot(volume.id, "s", None, (), False))

        async def has(status: Status) -> bool:
            return (await snapshots.get(snapshot.id)).status is status

        await until(lambda: has(Status.AVAILABLE))
        Hidden(tmp_path / storage_class, snapshot)
        run.driver.trouble.set()
        await until(lambda: has(Status.ERROR))
        listed = SnapshotFilter(), Page(size=10), lambda rows, _: rows[0].status
        assert await snapshots.page(*listed) == "error"
        new = NewVolume("c", None, SIZE, 5000, (), None, snapshot.id)
        for verb in (
            lambda: volumes.create(new),
            lambda: volumes.revert(volume.id, snapshot.id, False),
        ):
            with pytest.raises(PreconditionFailed, match="somebody removed or renamed it"):
                await verb()
        await snapshots.delete(snapshot.id)
        assert len(await problems(run)) == 1, "it may still be brought back"
        await run.catalog.write("erased", lambda tx: tx.remove_snapshot(snapshot.id))
        assert await is_well(run)
        stamps.expect((await volumes.device(volume.id)).path, 1)


async def test_volume_deleted_while_its_front_is_set_up_again_has_none_in_the_end(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        volume = await stamped_volume(run)
    hidden = Hidden(tmp_path / "sbs", volume)
    async with running(tmp_path) as run:
        gate = run.driver.gates["connect"] = Gate()
        hidden.bring_back()
        run.driver.trouble.set()
        async with asyncio.timeout(20):
            await gate.reached.wait()
        await run.service.volumes.delete(volume.id)
        gate.set()
        await until(lambda: is_well(run))
        async with run.driver.turn():
            assert await run.driver.disk_behind(volume.id) is None
        await run.service.volumes.undelete(volume.id)
        stamps.expect((await run.service.volumes.device(volume.id)).path, 1)
