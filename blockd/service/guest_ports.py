"""What the service needs of libvirt, and of whoever thaws guests when the daemon cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from blockd.domain.guest import DiskOrder, Guest, GuestKey, Sighting


class Hypervisors(Protocol):
    """Connections to libvirt: `host/hypervisor.py`. Without any, no domain is found."""

    @property
    def uris(self) -> Sequence[str]:
        """The connections' URIs."""

    def problems(self) -> Sequence[str]:
        """A line for each connection that there is not just now, or domain that is not known."""

    async def changed(self, uri: str) -> None:
        """Wait until a guest, or the connection, may have changed since this last returned."""

    async def guests(self, uri: str) -> Sighting:
        """Every domain of one connection.

        Raises:
            HypervisorUnreachable: it does not answer.
        """

    async def guest(self, key: GuestKey) -> Guest | None:
        """One domain, None if it is not there.

        Raises:
            GuestRefused, HypervisorUnreachable: it cannot be told.
        """

    async def find(self, domain: str, uri: str | None = None) -> Guest:
        """A domain by its UUID, or by its name.

        Raises:
            GuestRefused: there is none, or more than one.
            HypervisorUnreachable: none was found, and not all connections answer.
        """

    async def attach(self, guest: GuestKey, order: DiskOrder) -> str:
        """Attach a disk, to the running guest and to its definition; answers its target.

        Raises:
            GuestRefused: libvirt says no, and why.
            HypervisorUnreachable: it does not answer; whether it was done is seen by `guests`.
        """

    async def detach(self, guest: GuestKey, volume_id: str, *, live: bool) -> None:
        """Take a disk out of the definition, or, with `live`, ask the running guest to let it go.

        The latter has been done when the guest's disks, as of `guests`, no longer say `live`.
        Raises as `attach`.
        """

    async def resize(self, guest: GuestKey, volume_id: str, size_bytes: int) -> None:
        """Tell the guest, if it runs, that its disk has so many bytes now. Raises as `attach`."""

    async def limit(self, guest: GuestKey, volume_id: str, iops: int) -> None:
        """Bound the disk's operations a second. Raises as `attach`."""

    async def ask_agent(self, guest: GuestKey, timeout_s: float) -> None:
        """See that the guest agent answers, whatever it says; nothing is done.

        Raises:
            GuestRefused: it says nothing, or libvirt has no connection to it.
            HypervisorUnreachable: libvirt does not answer.
        """

    async def freeze(self, guest: GuestKey, timeout_s: float) -> int:
        """Have the guest agent freeze all file systems; answers how many are.

        Raises:
            FreezeNotBegun: the agent does not take the command: nothing was frozen by it.
            GuestRefused: the agent says no, or nothing. Some file systems may be frozen.
            HypervisorUnreachable: the same.
        """

    async def thaw(self, guest: GuestKey, timeout_s: float) -> int:
        """Have the guest agent thaw all file systems; answers how many were frozen.

        Raises as `freeze`.
        """


class ThawWatchdog(Protocol):
    """Thaws guests from outside this process: at a deadline, and whenever this process ends."""

    def arm(self, guest: GuestKey, within_s: float) -> None:
        """Have the guest thawed in so many seconds, unless `disarm` comes first.

        Raises:
            OSError: there is no watchdog.
        """

    def disarm(self, guest: GuestKey) -> None:
        """It is thawed. Raises as `arm`."""
