"""Devices of snapshots are made and taken away each by itself: none waits for one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from blockd.domain.snapshot import NewSnapshot, Snapshot
from blockd.service.shown_snapshots import ShownSnapshots, front_of_snapshot
from tests.service.group_rig import Host, host
from tests.support.file_driver import FileDriver
from tests.support.guests import Gate, until


@asynccontextmanager
async def settling(run: Host) -> AsyncIterator[ShownSnapshots]:
    """As the daemon runs it."""
    shown = ShownSnapshots(run.catalog, run.classes)
    running = asyncio.create_task(shown.run())
    try:
        yield shown
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def a_device(run: Host, class_name: str) -> Snapshot:
    """A snapshot with a device that nobody has a right to."""
    volume_id = await run.volume(class_name, 1)
    made = await run.service.snapshots.create(NewSnapshot(volume_id, None, None, (), False))
    await run.idle()
    snapshot = await run.service.snapshots.get(made.id)
    async with run.drivers[class_name].turn():
        await run.drivers[class_name].connect(front_of_snapshot(snapshot))
    return snapshot


async def is_hidden(run: Host, snapshot: Snapshot) -> bool:
    driver = run.drivers[snapshot.storage_class]
    return not Path(driver.device(front_of_snapshot(snapshot)).path).exists()


async def test_device_that_hangs_holds_up_no_other_class(tmp_path: Path) -> None:
    async with host(tmp_path) as run, AsyncExitStack() as stack:
        thin, thick = await a_device(run, "sbs"), await a_device(run, "bssd")
        run.drivers["sbs"].gates["hide"] = gate = Gate()
        shown = await stack.enter_async_context(settling(run))
        async with asyncio.timeout(20):
            shown.settle_soon(thin.id)
            await gate.reached.wait()
            shown.settle_soon(thick.id)
            await until(lambda: is_hidden(run, thick))
            assert not await is_hidden(run, thin)
            gate.set()
            await until(lambda: is_hidden(run, thin))


class Looks:
    """Looks at devices, in place of the driver's: those of `hanging` wait for `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hanging: Snapshot) -> None:
        self._hanging = {one.id for one in hanging}
        self._look, self.go_on, self.waiting = FileDriver.disk_behind, asyncio.Event(), set[str]()

        async def look(driver: FileDriver, resource_id: str) -> str | None:
            if resource_id in self._hanging:
                self.waiting.add(resource_id)
                await self.go_on.wait()
            return await self._look(driver, resource_id)

        monkeypatch.setattr(FileDriver, "disk_behind", look)

    async def are(self, count: int) -> bool:
        """Whether so many hang."""
        return len(self.waiting) == count


async def test_device_that_hangs_holds_up_no_other_of_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host(tmp_path) as run:
        first, second = await a_device(run, "sbs"), await a_device(run, "sbs")
        looks = Looks(monkeypatch, first)
        async with settling(run) as shown:
            shown.settle_soon(first.id)
            await until(lambda: looks.are(1))
            shown.settle_soon(second.id)
            await until(lambda: is_hidden(run, second))
            looks.go_on.set()
            await until(lambda: is_hidden(run, first))


async def test_many_devices_are_settled_few_at_once_and_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host(tmp_path) as run:
        devices = [await a_device(run, "sbs") for _ in range(6)]
        looks = Looks(monkeypatch, *devices)
        async with settling(run) as shown:
            for one in devices:
                shown.settle_soon(one.id)
            await until(lambda: looks.are(4))
            for _ in range(50):  # as long as others would need, were they not to wait
                await run.catalog.read(lambda tx: tx.attachments.all())
            assert await looks.are(4)
            looks.go_on.set()
            for one in devices:
                await until(lambda one=one: is_hidden(run, one))  # type: ignore[misc]
