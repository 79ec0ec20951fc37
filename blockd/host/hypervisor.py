"""libvirt through libvirt-python. The other parts of it are `libvirt_*.py` and `domain_xml.py`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar

from blockd.domain.errors import FreezeNotBegun, GuestRefused, HypervisorUnreachable
from blockd.domain.guest import DiskOrder, Guest, GuestKey, Sighting
from blockd.host import libvirt_domain
from blockd.host.libvirt_connection import CALL_S, Connection
from blockd.host.libvirt_events import event_loop

T = TypeVar("T")

#: What qemu-ga answers while it is frozen, and where an administrator forbids it to freeze
#: ("Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state"; qga/main.c).
_NOT_TAKEN: Final = re.compile(r"\bhas been disabled\b")


class Hypervisors:
    """Every connection of the configuration; see the port."""

    def __init__(self, uris: Sequence[str], agent_timeout_s: float = 5.0) -> None:
        """`agent_timeout_s`: how long a guest agent may take for one answer."""
        self._agent_timeout_s = agent_timeout_s
        self._changes = {uri: asyncio.Event() for uri in uris}
        # Calls to freeze, which may be carried out after nobody waits for them any more.
        self._freezes: dict[GuestKey, asyncio.Future[int]] = {}
        self._connections = {uri: self._connection(uri) for uri in self._changes}

    def _connection(self, uri: str) -> Connection:
        changed = self._changes.get(uri, asyncio.Event()).set
        return Connection(uri, self._agent_timeout_s, changed, libvirt_domain.describe)

    def problems(self) -> list[str]:
        """A line for each connection that there is not, and each domain that cannot be read."""
        found = []
        for connection in self._connections.values():
            if connection.problem is not None:
                found.append(connection.problem)
            found += connection.unseen
        return found

    @property
    def uris(self) -> Sequence[str]:
        """The connections' URIs."""
        return tuple(self._connections)

    async def changed(self, uri: str) -> None:
        """Wait until a guest, or the connection, may have changed since this last returned."""
        await self._changes[uri].wait()
        self._changes[uri].clear()

    async def guests(self, uri: str) -> Sighting:
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
        if uri is not None and uri not in self._connections:
            known = ", ".join(self._connections) or "none"
            raise GuestRefused(f"there is no libvirt connection {uri}: [libvirt] uris: {known}")
        asked = [uri] if uri is not None else list(self._connections)
        look = partial(libvirt_domain.find, domain)
        answers = await asyncio.gather(
            *(self._connections[one].find(look) for one in asked), return_exceptions=True
        )
        found = [answer for answer in answers if isinstance(answer, Guest)]
        # A UUID is nobody else's, whatever others call themselves.
        found = [guest for guest in found if guest.name != domain] or found
        if len(found) > 1:
            where = ", ".join(f"{guest.key.domain_id} ({guest.key.uri})" for guest in found)
            raise GuestRefused(f"domain {domain} is not one but {len(found)}: say which by {where}")
        if found:
            return found[0]
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
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

    async def detach(self, guest: GuestKey, volume_id: str, *, live: bool) -> None:
        """Take a disk out of the definition, or, with `live`, ask the running guest to let it go.

        The latter has been done when the guest's disks, as of `guests`, no longer say `live`.

        Raises:
            GuestRefused, HypervisorUnreachable: see `attach`.
        """
        await self._ask(
            guest,
            "detach the disk",
            lambda domain: libvirt_domain.detach(domain, volume_id, live=live),
            CALL_S,
        )

    async def resize(self, guest: GuestKey, volume_id: str, size_bytes: int) -> None:
        """Tell the guest, if it runs, that its disk has so many bytes now. Raises as `attach`."""
        await self._ask(
            guest,
            "grow the disk",
            lambda domain: libvirt_domain.resize(domain, volume_id, size_bytes),
            CALL_S,
        )

    async def limit(self, guest: GuestKey, volume_id: str, iops: int) -> None:
        """Bound the disk's operations a second. Raises as `attach`."""
        await self._ask(
            guest,
            "limit the disk",
            lambda domain: libvirt_domain.limit(domain, volume_id, iops),
            CALL_S,
        )

    async def ask_agent(self, guest: GuestKey, timeout_s: float) -> None:
        """See that the guest agent answers, whatever it says; nothing is done.

        Raises:
            GuestRefused: it says nothing, or libvirt has no connection to it.
            HypervisorUnreachable: libvirt does not answer.
        """
        await self._ask(guest, "ask the agent", libvirt_domain.ask_agent, timeout_s)

    async def freeze(self, guest: GuestKey, timeout_s: float) -> int:
        """Have the guest agent freeze all file systems; answers how many are.

        Raises:
            FreezeNotBegun: the agent does not take the command: nothing was frozen by it.
            GuestRefused: the agent says no, or nothing. Some file systems may be frozen.
            HypervisorUnreachable: see `attach`; the same.
        """

        def begun(call: asyncio.Future[int]) -> None:
            self._freezes[guest] = call

        try:
            return await self._of(guest).ask_domain(
                guest.domain_id, "freeze", lambda domain: int(domain.fsFreeze()), timeout_s, begun
            )
        except GuestRefused as err:
            if _NOT_TAKEN.search(str(err)) is not None:
                raise FreezeNotBegun(str(err)) from err
            raise

    async def thaw(self, guest: GuestKey, timeout_s: float) -> int:
        """Have the guest agent thaw all file systems; answers how many were frozen.

        Raises:
            GuestRefused, HypervisorUnreachable: see `freeze`.
        """
        freeze = self._freezes.get(guest)
        is_frozen_by_then = freeze is None or freeze.done()
        count = await self._of(guest).ask_domain(
            guest.domain_id, "thaw", lambda domain: int(domain.fsThaw()), timeout_s, thaws=True
        )
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
        """Of one that is not configured any more, too: what it was frozen by has to thaw it."""
        return self._connections.get(guest.uri) or self._connection(guest.uri)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep all connections for the length of the block; without any, libvirt is not loaded."""
        with event_loop() if self._connections else nullcontext():
            async with AsyncExitStack() as stack:
                for connection in self._connections.values():
                    await stack.enter_async_context(connection.kept())
                yield
