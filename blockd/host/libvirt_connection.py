"""A connection to libvirt, kept, and the event loop behind it.

libvirt's own event loop runs in a thread, and so does every call. libvirtaio, the asyncio glue that
comes with libvirt-python, calls asyncio from whichever thread libvirt is called in, which asyncio
does not allow (decision 22).
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
from blockd.domain.guest import Guest

log = structlog.get_logger()
T = TypeVar("T")

CALL_S: Final = 30.0
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0
#: libvirt asks a daemon that is silent for so long, so often, before it gives the connection up.
_KEEPALIVE_S, _KEEPALIVE_COUNT = 5, 3
#: Of one connection's at once: each hanging one holds a thread.
_MOST_CALLS: Final = 32


class Connection:
    """One URI.

    Guests are listed, and events heard, over one connection that is kept, by one call at a time.
    For every other call there is a connection of its own: libvirt's client crashes when several
    threads use one of its connections while its daemon hangs (9.0, as Debian 12 has it), and frees
    under a call what another thread closes.

    Attributes:
        problem: a line on why there is no connection; None: there is one.
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
        self._calls: set[asyncio.Future[Any]] = set()
        self.problem: str | None = f"libvirt {uri} is not connected yet"

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
            closed = asyncio.Event()
            opening = _in_thread(self._opening(closed))
            try:
                self._kept = await asyncio.shield(opening)
            except bindings().libvirtError as err:
                problem = f"libvirt {self._uri}: {_reason(err)}; tried again"
                if problem != self.problem:
                    log.warning("no connection to libvirt", uri=self._uri, reason=_reason(err))
                self.problem = problem
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
                self.problem = f"libvirt {self._uri}: the connection is lost; tried again"
                self._close_behind_listing(was)
            log.warning("the connection to libvirt is lost", uri=self._uri)
            self._changed()

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

    async def guests(self) -> list[Guest]:
        """See `Hypervisors.guests`."""

        def look(connection: Any) -> list[Guest]:
            found = (self._describe(self._uri, one) for one in connection.listAllDomains())
            return [guest for guest in found if guest is not None]

        what = "list the domains"
        with self._errors(what, CALL_S):
            async with asyncio.timeout(CALL_S):
                while self._listing is not None and not self._listing.done():
                    await asyncio.wait([self._listing])
                connection = self._kept
                if connection is None:
                    raise HypervisorUnreachable(self.problem or f"libvirt {self._uri} is away")
                self._listing = listing = _in_thread(lambda: look(connection))
                found: list[Guest] = await asyncio.shield(listing)
                return found

    async def guest(self, domain_id: str) -> Guest | None:
        """See `Hypervisors.guest`."""
        libvirt = bindings()

        def look(connection: Any) -> Guest | None:
            try:
                return self._describe(self._uri, connection.lookupByUUIDString(domain_id))
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

        return await self._ask(f"domain {domain_id}: look", look, CALL_S)

    async def ask_domain(
        self,
        domain_id: str,
        what: str,
        work: Callable[[Any], T],
        timeout_s: float,
        begun: Callable[[asyncio.Future[T]], None] = lambda _: None,
    ) -> T:
        """`work` with a domain; `begun` is told of the call, which may outlive this."""

        def ask(connection: Any) -> T:
            domain = connection.lookupByUUIDString(domain_id)
            with suppress(bindings().libvirtError):  # the test driver has it not
                domain.agentSetResponseTimeout(max(1, round(self._agent_timeout_s)))
            return work(domain)

        return await self._ask(f"domain {domain_id}: {what}", ask, timeout_s, begun)

    async def _ask(
        self,
        what: str,
        work: Callable[[Any], T],
        timeout_s: float,
        begun: Callable[[asyncio.Future[T]], None] = lambda _: None,
    ) -> T:
        """`work` with a connection of its own, in a thread."""

        def ask() -> T:
            connection = _connect(self._uri)
            try:
                return work(connection)
            finally:
                _close(connection)

        with self._errors(what, timeout_s):
            if len(self._calls) >= _MOST_CALLS:
                raise HypervisorUnreachable(
                    f"libvirt {self._uri} has not answered {_MOST_CALLS} calls: restart it"
                )
            call = _in_thread(ask)
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            begun(call)
            async with asyncio.timeout(timeout_s):
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
            if err.get_error_domain() == libvirt.VIR_FROM_RPC:
                raise HypervisorUnreachable(f"libvirt {self._uri}: {_reason(err)}") from err
            raise GuestRefused(f"{what}: {_reason(err)}") from err


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

    threading.Thread(target=run, name="libvirt", daemon=True).start()
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


def _reason(error: BaseException) -> str:
    """libvirt's own words, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _close(connection: Any) -> None:
    with suppress(bindings().libvirtError):
        connection.close()


@contextmanager
def event_loop() -> Iterator[None]:
    """libvirt's event loop in a thread, without which there are no events and no keepalive."""
    libvirt = bindings()
    libvirt.registerErrorHandler(lambda *_: None, None)  # else it writes to stderr by itself
    libvirt.virEventRegisterDefaultImpl()
    ends = threading.Event()

    def run() -> None:
        while not ends.is_set():
            libvirt.virEventRunDefaultImpl()

    timer = libvirt.virEventAddTimeout(-1, lambda *_: None, None)
    thread = threading.Thread(target=run, name="libvirt-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        libvirt.virEventUpdateTimeout(timer, 0)  # which ends the wait that is under way
        thread.join(timeout=5)
        libvirt.virEventRemoveTimeout(timer)
