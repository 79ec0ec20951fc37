"""A connection to libvirt, kept.

libvirt's own event loop runs in a thread (`libvirt_events.py`), and so does every call. libvirtaio,
the asyncio glue that comes with libvirt-python, calls asyncio from whichever thread libvirt is
called in, which asyncio does not allow (decision 22).
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeVar, cast

import structlog

from blockd.domain.errors import GuestRefused, HypervisorUnreachable
from blockd.domain.guest import Guest, GuestKey, Sighting

log = structlog.get_logger()
T = TypeVar("T")

CALL_S: Final = 30.0
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0
#: libvirt asks a daemon that is silent for so long, so often, before it gives the connection up.
_KEEPALIVE_S, _KEEPALIVE_COUNT = 5, 3
#: Of one connection's at once, as each that hangs holds a thread; the others wait for their turn.
_MOST_CALLS: Final = 32
#: Thaws wait for none of them. A group has so many volumes, so guests, at most.
_MOST_THAWS: Final = 64
_MOST_OPENINGS: Final = 4


class Connection:
    """One URI.

    Guests are listed, and events heard, over one connection that is kept, by one call at a time.
    For every other call there is a connection of its own: libvirt's client crashes when several
    threads use one of its connections while its daemon hangs (9.0, as Debian 12 has it), and frees
    under a call what another thread closes.

    Attributes:
        problem: a line on why there is no connection; None: there is one.
        unseen: a line for each domain that could not be told of when all were listed last.
    """

    def __init__(
        self,
        uri: str,
        agent_timeout_s: float,
        changed: Callable[[], None],
        describe: Callable[[str, Any], Guest | None],
    ) -> None:
        """`changed` is called when a guest may have; `describe` tells what one is, in a thread."""
        self._describe = describe
        self._uri, self._agent_timeout_s, self._changed = uri, agent_timeout_s, changed
        self._kept: Any = None
        self._listing: asyncio.Future[Any] | None = None
        self._openings: set[asyncio.Future[Any]] = set()
        self._calls = asyncio.Semaphore(_MOST_CALLS)
        self._thaws = asyncio.Semaphore(_MOST_THAWS)
        self.problem: str | None = f"libvirt {uri} is not connected yet"
        self.unseen: tuple[str, ...] = ()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Connected, whenever it can be, for the length of the block."""
        keeping = asyncio.create_task(self._keep(), name=f"libvirt {self._uri}")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                self._kept, closed = await self._open()
            except Exception as err:  # noqa: BLE001 - whatever it is, it is tried again
                self._lost(reason_of(err))
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
                continue
            log.info("connected to libvirt", uri=self._uri)
            self.problem, retry_s = None, _FIRST_RETRY_S
            self._changed()
            try:
                await closed.wait()
            finally:
                was, self._kept = self._kept, None
                self._close_behind_listing(was)
            self._lost("the connection is lost")
            self._changed()

    def _lost(self, reason: str) -> None:
        problem = f"libvirt {self._uri}: {reason}; tried again"
        if problem != self.problem:
            log.warning("no connection to libvirt", uri=self._uri, reason=reason)
        self.problem = problem

    async def _open(self) -> tuple[Any, asyncio.Event]:
        """A connection, and what tells that it is lost.

        One that is not answered may be for ever (its host is off), and then another may be: so it
        is waited for, and after a time another one is opened beside it.

        Raises:
            Exception: why not.
        """
        begun: dict[asyncio.Future[Any], asyncio.Event] = {}
        try:
            while True:
                if len(self._openings) < _MOST_OPENINGS:
                    closed = asyncio.Event()
                    begun[opening := _in_thread(self._opening(closed))] = closed
                    self._openings.add(opening)
                    opening.add_done_callback(self._openings.discard)
                await asyncio.wait(
                    self._openings, timeout=CALL_S, return_when=asyncio.FIRST_COMPLETED
                )
                for opening in [one for one in begun if one.done()]:
                    closed = begun.pop(opening)
                    return opening.result(), closed
                self._lost(f"no answer within {CALL_S:g} s")
        finally:
            for opening in begun:
                opening.add_done_callback(_close_late)

    def _close_behind_listing(self, connection: Any) -> None:
        if self._listing is None or self._listing.done():
            _in_thread(lambda: _close(connection))
        else:
            self._listing.add_done_callback(lambda _: _in_thread(lambda: _close(connection)))

    def _opening(self, closed: asyncio.Event) -> Callable[[], Any]:
        """What a thread does: connect, and have the loop told of events."""
        loop = asyncio.get_running_loop()

        def told(listener: Callable[[], None]) -> Callable[..., None]:
            def tell(*_: object) -> None:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(listener)

            return tell

        def connect() -> Any:
            libvirt = bindings()
            connection = _connect(self._uri)
            try:
                with suppress(libvirt.libvirtError):  # a driver without a daemon behind it
                    connection.registerCloseCallback(told(closed.set), None)
                for event in (
                    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
                    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
                    libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                ):
                    with suppress(libvirt.libvirtError):  # the test driver has not all of them
                        connection.domainEventRegisterAny(None, event, told(self._changed), None)
            except BaseException:
                _close(connection)
                raise
            return connection

        return connect

    async def guests(self) -> Sighting:
        """See `Hypervisors.guests`."""

        def look(connection: Any) -> tuple[Sighting, list[str]]:
            guests, unseen, lines = [], {}, []
            for domain in connection.listAllDomains():
                try:
                    guest = self._describe(self._uri, domain)
                except Exception as err:
                    if is_cut(err):
                        raise
                    unseen[GuestKey(self._uri, domain.UUIDString())] = reason_of(err)
                    lines.append(
                        f"libvirt {self._uri}: domain {domain.name()}: what it has is not known: "
                        f"{reason_of(err)}"
                    )
                    continue
                if guest is not None:
                    guests.append(guest)
            return Sighting(tuple(guests), unseen), lines

        what = "list the domains"
        with self._errors(what, CALL_S), self._silence_told():
            async with asyncio.timeout(CALL_S):
                while self._listing is not None and not self._listing.done():
                    await asyncio.wait([self._listing])
                connection = self._kept
                if connection is None:
                    raise HypervisorUnreachable(self.problem or f"libvirt {self._uri} is away")
                self._listing = listing = _in_thread(lambda: look(connection))
                found, lines = await asyncio.shield(listing)
                self.unseen = tuple(lines)
                return found

    @contextmanager
    def _silence_told(self) -> Iterator[None]:
        """A libvirtd that keeps the connection alive, and does not answer, is nowhere else seen."""
        try:
            yield
        except TimeoutError:
            line = f"libvirt {self._uri}: list the domains: no answer within {CALL_S:g} s"
            self.unseen = (f"{line}: guests are as they were seen last; is a domain stuck?",)
            raise

    async def guest(self, domain_id: str) -> Guest | None:
        """See `Hypervisors.guest`."""
        return await self.find(lambda connection: connection.lookupByUUIDString(domain_id))

    async def find(self, look: Callable[[Any], Any]) -> Guest | None:
        """The domain that `look` finds, None if it finds none. Raises as `Hypervisors.guest`."""
        libvirt = bindings()

        def ask(connection: Any) -> Guest | None:
            try:
                domain = look(connection)
                return None if domain is None else self._describe(self._uri, domain)
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

        return await self._ask("look for a domain", ask, CALL_S, self._calls)

    async def ask_domain(
        self,
        domain_id: str,
        what: str,
        work: Callable[[Any], T],
        timeout_s: float,
        begun: Callable[[asyncio.Future[T]], None] = lambda _: None,
        *,
        thaws: bool = False,
    ) -> T:
        """`work` with a domain; `begun` is told of the call, which may outlive this.

        Args:
            thaws: it waits for no other call's end, but a thaw's.
        """

        def ask(connection: Any) -> T:
            domain = connection.lookupByUUIDString(domain_id)
            with suppress(bindings().libvirtError):  # the test driver has it not
                domain.agentSetResponseTimeout(max(1, round(self._agent_timeout_s)))
            return work(domain)

        room = self._thaws if thaws else self._calls
        return await self._ask(f"domain {domain_id}: {what}", ask, timeout_s, room, begun)

    async def _ask(
        self,
        what: str,
        work: Callable[[Any], T],
        timeout_s: float,
        room: asyncio.Semaphore,
        begun: Callable[[asyncio.Future[T]], None] = lambda _: None,
    ) -> T:
        """`work` with a connection of its own, in a thread."""

        def ask() -> T:
            try:
                connection = _connect(self._uri)
            except bindings().libvirtError as err:  # whichever: no guest was asked anything
                raise HypervisorUnreachable(f"libvirt {self._uri}: {reason_of(err)}") from None
            try:
                return work(connection)
            finally:
                _close(connection)

        with self._errors(what, timeout_s):
            async with asyncio.timeout(timeout_s):
                await room.acquire()
                call = _in_thread(ask)
                call.add_done_callback(lambda _: room.release())
                begun(call)
                return await asyncio.shield(call)

    @contextmanager
    def _errors(self, what: str, timeout_s: float) -> Iterator[None]:
        """libvirt's errors as ours."""
        libvirt = bindings()
        try:
            yield
        except TimeoutError:
            raise HypervisorUnreachable(
                f"libvirt {self._uri}: {what}: no answer within {timeout_s:g} s"
            ) from None
        except libvirt.libvirtError as err:
            if is_cut(err):
                raise HypervisorUnreachable(f"libvirt {self._uri}: {reason_of(err)}") from err
            raise GuestRefused(f"{what}: {reason_of(err)}") from err


def is_cut(error: Exception) -> bool:
    """Whether it is the connection's, and not about what was asked."""
    libvirt = bindings()
    return (
        isinstance(error, libvirt.libvirtError) and error.get_error_domain() == libvirt.VIR_FROM_RPC
    )


def _close_late(opening: asyncio.Future[Any]) -> None:
    """Nobody waits for this connection any more."""
    if not opening.cancelled() and opening.exception() is None:
        _in_thread(lambda: _close(opening.result()))


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The outcome of `work`, done in a thread that keeps nobody from ending.

    No executor's: the end of the process would wait for a call that hangs.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(outcome: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            future.exception()  # whoever asked may have gone
        else:
            future.set_result(cast("T", outcome))

    def run() -> None:
        outcome, error = None, None
        try:
            outcome = work()
        except BaseException as err:  # noqa: BLE001 - it is raised where it is awaited
            # The frames hold domains, and with them the connection, whose end is a call to
            # libvirtd: left to the garbage collector, it would hang whatever thread that runs in.
            traceback.clear_frames(err.__traceback__)
            error = err.with_traceback(None)
            del err
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, outcome, error)

    try:
        threading.Thread(target=run, name="libvirt", daemon=True).start()
    except RuntimeError as err:  # no thread to be had just now
        settle(None, err)
    return future


def _connect(uri: str) -> Any:
    """In a thread: a connection that is given up when its daemon is silent for too long."""
    libvirt = bindings()
    connection = libvirt.open(uri)
    with suppress(libvirt.libvirtError):  # a driver without a daemon behind it
        connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
    return connection


def bindings() -> Any:
    """The bindings, imported when they are first needed: a host without guests needs them not."""
    import libvirt  # noqa: PLC0415

    return libvirt


def reason_of(error: BaseException) -> str:
    """libvirt's own words, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _close(connection: Any) -> None:
    with suppress(bindings().libvirtError):
        connection.close()
