"""libvirt, and the process that thaws its guests, as the configuration has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from blockd.catalog import Catalog
from blockd.config import Config
from blockd.host.hypervisor import Hypervisors
from blockd.host.thawing import thaw_watchdog
from blockd.service.attachments import Attachments
from blockd.service.classes import StorageClasses
from blockd.service.freezes import Freezes
from blockd.service.guest_ports import ThawWatchdog
from blockd.service.guest_watch import GuestWatch
from blockd.service.shown_snapshots import ShownSnapshots


@dataclass(frozen=True, slots=True)
class Guests:
    """Connections to libvirt; `watchdog` is None where none is configured."""

    hypervisors: Hypervisors
    watchdog: ThawWatchdog | None

    def verbs(
        self, config: Config, catalog: Catalog, classes: StorageClasses, shown: ShownSnapshots
    ) -> tuple[Freezes, GuestWatch, Attachments]:
        """What is done with guests; none of it begun."""
        section = config.libvirt
        watch = GuestWatch(catalog, self.hypervisors, shown)
        return (
            Freezes(
                catalog,
                self.hypervisors,
                self.watchdog,
                max_freeze_s=section.max_freeze,
                agent_timeout_s=section.agent_timeout,
            ),
            watch,
            Attachments(
                catalog,
                classes,
                self.hypervisors,
                watch,
                shown,
                detach_timeout_s=section.detach_timeout,
            ),
        )


def no_guests() -> Guests:
    """Of a host without libvirt."""
    return Guests(Hypervisors(()), None)


@asynccontextmanager
async def open_guests(config: Config) -> AsyncIterator[Guests]:
    """Connected for the length of the block, to whatever of it answers."""
    section = config.libvirt
    hypervisors = Hypervisors(section.uris, section.agent_timeout)
    async with AsyncExitStack() as stack:
        watchdog: ThawWatchdog | None = None
        if section.uris:  # a host without guests needs no other process
            watchdog = await stack.enter_async_context(thaw_watchdog())
        await stack.enter_async_context(hypervisors.connected())
        yield Guests(hypervisors, watchdog)
