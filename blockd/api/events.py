"""`GET /host/v1/events`: what happens to resources, as server-sent events.

The format is that of the HTML standard, section 9.2 (html.spec.whatwg.org, server-sent-events), so
`EventSource` and curl can follow it. Each block has an `id`, from which a later request goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, RootModel
from pydantic_core import to_json

from blockd.api.answers import Answer, Instant
from blockd.api.middleware import REQUEST_ID, current_request_id
from blockd.api.protocol import JsonProtocol
from blockd.api.query import Flag, parse_query
from blockd.api.routes import Route
from blockd.api.scalars import Uuid
from blockd.domain.errors import CatalogUnavailable
from blockd.domain.event import Event, EventFilter, EventKind, Place, What
from blockd.service import Service

log = structlog.get_logger()

STREAM_TYPE: Final = "text/event-stream"

#: A word at least this often: a reader that hears nothing for much longer has lost the daemon.
HEARTBEAT_S: Final = 15.0
#: A reader that takes nothing for so long, with the buffers to it full, is let go.
PATIENCE_S: Final = 10.0
#: The same, once the daemon stops.
_PATIENCE_AT_END_S: Final = 0.5
#: Before the first event that is remembered.
_OLDEST: Final = "oldest"
#: What an `EventSource` waits before it connects again.
_RETRY_MS: Final = 1000


class EventsListing(BaseModel):
    """All conditions hold together.

    `last_event_id` is for those who cannot send the header, and may be `oldest`. Without `follow`
    the stream ends when all is told.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    project_id: Uuid | None = None
    resource_id: Uuid | None = None
    last_event_id: str | None = None
    follow: Flag = True


class ResourceNow(Answer):
    """The resource as it is seen now. A job has no name, and its state for a status."""

    id: Uuid
    name: str | None
    status: str
    error: str | None


class EventData(Answer):
    """`data` of each event but `reset`: `status` came with the change, `resource` is what is now.

    `resource` is null once it is gone. That a device is opened or closed is told for mounts within
    a second, for others within some.
    """

    id: str
    at: Instant
    kind: EventKind
    what: What
    resource_id: Uuid
    project_id: Uuid
    status: str
    resource: ResourceNow | None


class NoticeData(Answer):
    """`data` of `reset` and `end`, which are about the stream.

    `missed`: what happened since the last id is not known any more: list all anew. `told`: without
    `follow`, that was all.
    """

    reason: Literal["missed", "told"]


class StreamData(RootModel[EventData | NoticeData]):
    """What `data` holds: `NoticeData` after `event: reset` and `event: end`, else `EventData`."""


class EventsHandlers:
    """The one route, and the end of all its streams when the application ends."""

    def __init__(self, service: Service) -> None:
        self._events = service.events
        self._is_ending = False
        self._woken: set[asyncio.Event] = set()
        self._sending: set[asyncio.Timeout] = set()

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        return [
            Route(
                "GET",
                "/events",
                self.follow,
                "Follow what happens: server-sent events, whose data are described here",
                StreamData,
                query=EventsListing,
                media_type=STREAM_TYPE,
                headers=("Last-Event-ID",),
            )
        ]

    async def end(self, _app: web.Application) -> None:
        """Let every stream end; the application calls it when it is shut down."""
        self._is_ending = True
        for woken in self._woken:
            woken.set()
        soon = asyncio.get_running_loop().time() + _PATIENCE_AT_END_S
        for patience in self._sending:
            patience.reschedule(soon)

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """GET /events: until the client leaves, does not read, or the daemon stops."""
        asked = parse_query(EventsListing, request)
        wanted = EventFilter(asked.project_id, asked.resource_id)
        # Of an `EventSource` that connects again the header is newer than what its URL says.
        last_id = request.headers.get("Last-Event-ID") or asked.last_event_id
        with self._events.following() as woken:
            place, missed = await self._begin(last_id)
            stream = web.StreamResponse(
                headers={
                    "Content-Type": STREAM_TYPE,
                    "Cache-Control": "no-store",
                    REQUEST_ID: current_request_id(),
                }
            )
            with self._woken_at_the_end(request, woken):
                await stream.prepare(request)
                first = _place(place, f"retry: {_RETRY_MS}\n")
                if missed:
                    first += _notice("reset", place, "missed")
                try:
                    await self._send(stream, first)
                    await self._tell(request, stream, place, wanted, woken, asked.follow)
                except ConnectionError:
                    log.debug("the reader of events has left")
                except TimeoutError:
                    log.warning("a reader of events takes nothing, and is let go")
                    _abort(request)
                except CatalogUnavailable as err:
                    # It has an answer already: cut off, it comes again and is told what is wrong.
                    log.warning("a stream of events ends", reason=str(err))
                    _abort(request)
                except Exception:
                    _abort(request)  # an error that is answered now would look like an event
                    raise
        return stream

    @contextmanager
    def _woken_at_the_end(self, request: web.Request, woken: asyncio.Event) -> Iterator[None]:
        """Set it, too, when the client leaves and when the application ends."""
        protocol = request.protocol
        if not isinstance(protocol, JsonProtocol):
            raise TypeError("a stream of events needs to know when its reader leaves")
        self._woken.add(woken)
        protocol.when_lost = woken.set
        try:
            yield
        finally:
            protocol.when_lost = None
            self._woken.discard(woken)

    async def _begin(self, last_id: str | None) -> tuple[Place, bool]:
        """Where the stream begins, and whether something before it was missed."""
        if last_id == _OLDEST:
            return await self._events.oldest(), False
        place = None if last_id is None else Place.parse(last_id)
        if place is None:
            news = await self._events.since(None, EventFilter())
            return news.place, last_id is not None
        return place, False

    async def _tell(
        self,
        request: web.Request,
        stream: web.StreamResponse,
        place: Place,
        wanted: EventFilter,
        woken: asyncio.Event,
        follow: bool,
    ) -> None:
        while not self._is_ending and request.transport is not None:
            woken.clear()  # before looking: what is committed from here on wakes us again
            news = await self._events.since(place, wanted)
            if news.missed:
                await self._send(stream, _notice("reset", news.place, "missed"))
            elif news.events:
                await self._send(stream, "".join(_block(place, event) for event in news.events))
            place = news.place
            if not news.is_all:
                continue
            if not follow:
                await self._send(stream, _notice("end", place, "told"))
                return
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await woken.wait()
            except TimeoutError:
                await self._send(stream, _place(place, ":\n"))

    async def _send(self, stream: web.StreamResponse, text: str) -> None:
        """Raises TimeoutError if the reader takes nothing, ConnectionError if it is gone."""
        async with asyncio.timeout(PATIENCE_S) as patience:
            self._sending.add(patience)
            try:
                await stream.write(text.encode())
            finally:
                self._sending.discard(patience)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _place(place: Place, before: str) -> str:
    """A block that is no event, and tells from where to go on."""
    return f"{before}id: {place}\n\n"


def _notice(name: str, place: Place, reason: str) -> str:
    return f'event: {name}\nid: {place}\ndata: {{"reason":"{reason}"}}\n\n'


def _block(place: Place, event: Event) -> str:
    """One event; JSON has no line breaks, so one line of `data` holds it."""
    id_ = Place(place.history, event.sequence)
    now = event.resource
    data = {
        "id": str(id_),
        "at": event.at,
        "kind": event.kind,
        "what": event.what,
        "resource_id": event.resource_id,
        "project_id": event.project_id,
        "status": event.status,
        "resource": now
        and {
            "id": event.resource_id,
            "name": now.name,
            "status": now.status,
            "error": now.error,
        },
    }
    text = to_json(data).decode()
    return f"event: {event.kind}.{event.what}\nid: {id_}\ndata: {text}\n\n"
