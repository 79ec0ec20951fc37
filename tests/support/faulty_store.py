"""A proxy before an object store that misbehaves where a test wants it to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

from blockd.config import ObjectStorageSection
from tests.support.object_store import Server

#: Of a request as `kind_of` names it: `PUT part 3`, `POST uploads`, `GET`, `DELETE upload`.
Matches = Callable[[str], bool]


@dataclass
class Fault:
    """What happens to requests that match, `times` times.

    Attributes:
        does: `refuse` (reset before an answer), `reset` (in the middle of the body, whichever goes
            that way), `status` (answer with `status` and `code`), `hang`, `cut` (end the answer's
            body early), `call` (run `action`, then go on), `rename` (the answer's ETags are
            others than S3 would give), or `damage` (a byte of the body is another one).
    """

    matches: Matches
    does: str
    times: int = 1
    status: int = 500
    code: str = "InternalError"
    action: Callable[[], object] = field(default=lambda: None)


@dataclass
class FaultyStore:
    """The proxy. `seen` lists the requests in the order in which they came."""

    server: Server
    port: int = 0
    latency_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def section(self) -> ObjectStorageSection:
        """The configuration of a daemon that goes through it."""
        endpoint = f"http://127.0.0.1:{self.port}"
        return self.server.section.model_copy(update={"endpoint": endpoint})

    def count(self, kind: str) -> int:
        """How many requests of this kind came."""
        return sum(seen == kind for seen in self.seen)

    def parts(self) -> list[int]:
        """Numbers of the parts that were sent, in order, repetitions included."""
        return [int(seen.split()[2]) for seen in self.seen if seen.startswith("PUT part")]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request: a fault, or what the server answers."""
        kind = kind_of(request)
        self.seen.append(kind)
        fault = self._take(kind)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if fault is not None:
            match fault.does:
                case "refuse":
                    return _reset(request)
                case "status":
                    text = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>"
                    return web.Response(status=fault.status, text=text)
                case "hang":
                    self.hanging.set()
                    await self.released.wait()
                    return _reset(request)
                case "call":
                    fault.action()
                case "reset" if request.method == "PUT":
                    await request.content.readexactly(100_000)
                    return _reset(request)
        does = "" if fault is None else fault.does
        body: object = request.content if request.can_read_body else None
        if does == "damage":
            damaged = bytearray(await request.read())
            damaged[len(damaged) // 2] ^= 1
            body = bytes(damaged)
        return await self._forward(
            request, body, cuts=does in ("cut", "reset"), renames=does == "rename"
        )

    def _take(self, kind: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.matches(kind):
                fault.times -= 1
                return fault
        return None

    async def _forward(
        self, request: web.Request, body: object, *, cuts: bool, renames: bool
    ) -> web.StreamResponse:
        url = URL(self.server.url + request.raw_path, encoded=True)
        headers = {
            name: value for name, value in request.headers.items() if name != "Transfer-Encoding"
        }
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            passed = {
                name: value
                for name, value in answer.headers.items()
                if name not in ("Transfer-Encoding", "Connection", "Date")
            }
            if renames:
                text = re.sub(r"<ETag>[^<]*</ETag>", "<ETag>other</ETag>", await answer.text())
                return web.Response(status=answer.status, text=text)
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                if cuts:
                    await response.write(piece[: len(piece) // 2])
                    return _reset(request, response)
                self.sent_bytes += len(piece)
                await response.write(piece)
            await response.write_eof()
            return response

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[FaultyStore]:
        """Listen for the length of the block."""
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        async with aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=("User-Agent", "Accept-Encoding")
        ) as self._session:
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                self.port = runner.addresses[0][1]
                yield self
            finally:
                self.released.set()
                await runner.cleanup()
                # Clients on this loop see it only now, whose sockets still had bytes for us: a
                # loop that ends before has "unclosed transports", of which another test is told.
                await asyncio.sleep(0.01)


def kind_of(request: web.Request) -> str:
    """What a request is about, in a few words."""
    query = request.query
    if "partNumber" in query:
        return f"PUT part {query['partNumber']}"
    if "uploadId" in query:
        return f"{request.method} upload"
    if "uploads" in query:
        return f"{request.method} uploads"
    if "location" in query:
        return "GET location"
    return request.method


def _reset(request: web.Request, answer: web.StreamResponse | None = None) -> web.StreamResponse:
    """Break the connection, so that the client sees a reset."""
    if request.transport is not None:
        request.transport.abort()
    return answer or web.Response()


def is_part(number: int) -> Matches:
    """For `Fault`: whether a request sends this part."""
    return lambda kind: kind == f"PUT part {number}"


def is_any(word: str) -> Matches:
    """For `Fault`: whether a request is of this kind, `PUT`, `POST upload` and the like."""
    return lambda kind: kind == word or kind.startswith(f"{word} ")
