"""The service connected to a libvirtd of the tests', and a gate that says when it is reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume, Volume
from tests.support.file_driver import FileDriver
from tests.support.service import Running, file_config, idle, running

#: Shorter than the defaults, which are made for people and slow guests.
_SETTINGS = {"detach_timeout": 5.0, "agent_timeout": 1.0}


class Gate(asyncio.Event):
    """Shut until it is set; for `FileDriver.gates`."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def wait(self) -> bool:  # type: ignore[override]
        """As an event's; whoever comes here is seen."""
        self.reached.set()
        return await super().wait()


@asynccontextmanager
async def with_guests(
    root: Path,
    *uris: str,
    max_freeze_s: float = 10.0,
    driver: FileDriver | None = None,
    awaits_libvirt: bool = True,
) -> AsyncIterator[Running]:
    """The service, once it is connected; without `awaits_libvirt`, before."""
    config = file_config(root)
    told = {**_SETTINGS, "uris": uris, "max_freeze": max_freeze_s}
    daemon = config.daemon.model_copy(update={"stop_timeout": 0.1})
    config = config.model_copy(
        update={"libvirt": config.libvirt.model_copy(update=told), "daemon": daemon}
    )
    async with running(root, config=config, driver=driver) as run:
        if awaits_libvirt:
            await until(lambda: is_well(run))
        yield run


async def is_well(run: Running) -> bool:
    """Whether health knows of no problem."""
    return not (await run.service.host.health()).problems


async def until(what: Callable[[], Awaitable[object]]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(20):
        while not await what():
            await asyncio.sleep(0.01)


async def a_volume(run: Running, name: str = "data") -> Volume:
    """Available, of 4 MiB."""
    new = NewVolume(name, None, 4 * MIB, 5000, (), None, None)
    volume = await run.service.volumes.create(new)
    await idle(run)
    return await run.service.volumes.get(volume.id)


async def has_users(run: Running, volume: Volume) -> bool:
    """Whether some guest is seen to have it."""
    return bool((await run.service.volumes.get(volume.id)).attachments)
