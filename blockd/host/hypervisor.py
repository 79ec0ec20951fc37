"""libvirt through libvirt-python. The other parts of it are `libvirt_*.py` and `domain_xml.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from blockd.domain.errors import GuestRefused, HypervisorUnreachable
from blockd.domain.guest import DiskOrder, Guest, GuestKey
from blockd.host import libvirt_domain
from blockd.host.libvirt_connection import CALL_S, Connection, bindings, event_loop

T = TypeVar("T")


class Hypervisors:
    """Every connection of the configuration; see the port."""

    def __init__(self, uris: Sequence[str], agent_timeout_s: float = 5.0) -> None:
        """`agent_timeout_s`: how long a guest agent may take for one answer."""
        self._changes = asyncio.Event()
        # Calls to freeze, which may be carried out after nobody waits for them any more.
        self._freezes: dict[GuestKey, asyncio.Future[int]] = {}
        self._connections = {
            uri: Connection(uri, agent_timeout_s, self._changes.set, libvirt_domain.describe)
            for uri in uris
        }

    def problems(self) -> list[str]:
        """A line for each connection that there is not."""
        found = [connection.problem for connection in self._connections.values()]
        return [problem for problem in found if problem is not None]

    @property
    def uris(self) -> Sequence[str]:
        """The connections' URIs."""
        return tuple(self._connections)

    async def changed(self) -> None:
        """Wait until a guest, or a connection, may have changed since this last returned."""
        await self._changes.wait()
        self._changes.clear()

    async def guests(self, uri: str) -> list[Guest]:
        """Every domain of one connection.

        Raises:
            HypervisorUnreachable: it does not answer.
        """
        return await self._connections[uri].guests()

    async def guest(self, key: GuestKey) -> Guest | None:
        """One domain, None if it is not there.

        Raises:
            GuestRefused, HypervisorUnreachable: it cannot be told.
        """
        return await self._of(key).guest(key.domain_id)

    async def find(self, domain: str, uri: str | None = None) -> Guest:
        """A domain by its UUID, or by its name.

        Raises:
            GuestRefused: there is none, or more than one.
            HypervisorUnreachable: none was found, and not all connections answer.
        """
        if not self._connections:
            raise GuestRefused("no guest is known: there is no [libvirt] uris in the configuration")
        found, silent = [], None
        for one in [uri] if uri is not None else self._connections:
            if one not in self._connections:
                known = ", ".join(self._connections) or "none"
                raise GuestRefused(f"there is no libvirt connection {one}: [libvirt] uris: {known}")
            try:
                guests = await self.guests(one)
            except HypervisorUnreachable as err:
                silent = err
                continue
            found += [guest for guest in guests if domain in (guest.key.domain_id, guest.name)]
        if len(found) > 1:
            where = ", ".join(f"{guest.key.domain_id} ({guest.key.uri})" for guest in found)
            raise GuestRefused(f"domain {domain} is not one but {len(found)}: say which by {where}")
        if found:
            return found[0]
        if silent is not None:
            raise silent
        raise GuestRefused(f"there is no domain {domain}: virsh list --all lists them")

    async def attach(self, guest: GuestKey, order: DiskOrder) -> str:
        """Attach a disk, to the running guest and to its definition; answers its target.

        Raises:
            GuestRefused: libvirt says no, and why.
            HypervisorUnreachable: it does not answer; whether it was done is seen by `guests`.
        """
        return await self._ask(
            guest, "attach the disk", lambda domain: libvirt_domain.attach(domain, order), CALL_S
        )

    async def detach(self, guest: GuestKey, target: str, *, live: bool) -> None:
        """Take a disk out of the definition, or, with `live`, ask the running guest to let it go.

        The latter has been done when the guest's disks, as of `guests`, no longer say `live`.

        Raises:
            GuestRefused, HypervisorUnreachable: see `attach`.
        """
        await self._ask(
            guest,
            "detach the disk",
            lambda domain: libvirt_domain.detach(domain, target, live=live),
            CALL_S,
        )

    async def resize(self, guest: GuestKey, target: str, size_bytes: int) -> None:
        """Tell the guest, if it runs, that its disk has so many bytes now. Raises as `attach`."""

        def resize(domain: Any) -> None:
            if not domain.isActive():
                return  # it sees the device as it is when it starts
            domain.blockResize(target, size_bytes, bindings().VIR_DOMAIN_BLOCK_RESIZE_BYTES)

        await self._ask(guest, "grow the disk", resize, CALL_S)

    async def limit(self, guest: GuestKey, target: str, iops: int | None) -> None:
        """Bound the disk's operations a second; None: no bound. Raises as `attach`."""

        def limit(domain: Any) -> None:
            flags = libvirt_domain.affected(domain)
            domain.setBlockIoTune(target, {"total_iops_sec": iops or 0}, flags)

        await self._ask(guest, "limit the disk", limit, CALL_S)

    async def freeze(self, guest: GuestKey, timeout_s: float) -> int:
        """Have the guest agent freeze all file systems; answers how many are.

        Raises:
            GuestRefused: the agent says no, or nothing. Some file systems may be frozen.
            HypervisorUnreachable: see `attach`; the same.
        """

        def begun(call: asyncio.Future[int]) -> None:
            self._freezes[guest] = call

        return await self._of(guest).ask_domain(
            guest.domain_id, "freeze", lambda domain: int(domain.fsFreeze()), timeout_s, begun
        )

    async def thaw(self, guest: GuestKey, timeout_s: float) -> int:
        """Have the guest agent thaw all file systems; answers how many were frozen.

        Raises:
            GuestRefused, HypervisorUnreachable: see `freeze`.
        """
        freeze = self._freezes.get(guest)
        is_frozen_by_then = freeze is None or freeze.done()
        count = await self._ask(guest, "thaw", lambda domain: int(domain.fsThaw()), timeout_s)
        if not is_frozen_by_then:  # a libvirtd that hung may have done the thaw first
            raise HypervisorUnreachable(
                f"domain {guest.domain_id}: its freeze is not answered yet: it is thawed after it"
            )
        self._freezes.pop(guest, None)
        return count

    async def _ask(
        self, guest: GuestKey, what: str, work: Callable[[Any], T], timeout_s: float
    ) -> T:
        return await self._of(guest).ask_domain(guest.domain_id, what, work, timeout_s)

    def _of(self, guest: GuestKey) -> Connection:
        connection = self._connections.get(guest.uri)
        if connection is None:
            raise HypervisorUnreachable(f"libvirt {guest.uri} is not in the configuration")
        return connection

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep all connections for the length of the block; without any, libvirt is not loaded."""
        with event_loop() if self._connections else nullcontext():
            async with AsyncExitStack() as stack:
                for connection in self._connections.values():
                    await stack.enter_async_context(connection.kept())
                yield
