"""What every request goes through: id, access, errors as JSON, and one log event."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from blockd.api.errors import MAX_BODY_BYTES, error_answer, http_answer
from blockd.api.peer import Peer, peer_of
from blockd.api.tokens import Tokens
from blockd.domain.errors import PermissionDenied

log = structlog.get_logger()

REQUEST_ID: Final = "X-Request-Id"


def make_guard(admit: Callable[[Peer], bool], tokens: Tokens | None) -> Middleware:
    """The one middleware: a chain of small ones would cost each request as many coroutines.

    Args:
        admit: whether this peer of the Unix socket may use the API; asked once per request.
        tokens: what proves to be admitted over TCP; None admits nobody there.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        request_id = str(uuid4())
        # aiohttp runs each request in a task, so with a context, of its own.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        failure: Exception | None = None
        answer: web.StreamResponse
        try:
            _check(request, admit, tokens)
            answer = await handler(request)
        except web.HTTPException as error:
            answer = http_answer(error, request.method, request.rel_url.raw_path)
        except Exception as error:  # the last stop before the client
            if isinstance(error, ConnectionResetError) and request.transport is None:
                raise  # the client left while it sent its body: nobody to answer
            failure = error
            answer = error_answer(error)
        answer.headers[REQUEST_ID] = request_id
        _log(request, answer.status, time.perf_counter() - started, request_id, failure)
        return answer

    return guard


def current_request_id() -> str:
    """What `X-Request-Id` says, for an answer whose headers are sent before its handler ends."""
    return str(structlog.contextvars.get_contextvars()["request_id"])


def _check(request: web.Request, admit: Callable[[Peer], bool], tokens: Tokens | None) -> None:
    peer = peer_of(request.transport)
    if peer is None and tokens is not None:
        tokens.check(request.headers.get("X-Auth-Token"))
    elif peer is None or not admit(peer):
        raise PermissionDenied("api", "read" if request.method == "GET" else "write")
    length = request.content_length
    if length is not None and length > MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, length)


def _log(
    request: web.Request,
    status: int,
    duration_s: float,
    request_id: str,
    failure: Exception | None,
) -> None:
    path = request.rel_url.raw_path
    event = log.debug if request.method == "GET" else log.info
    if status >= 500:
        event = log.error
    elif status >= 400:
        event = log.info
    event(
        "request",
        method=request.method,
        path=path if path.isascii() else ascii(path),
        status=status,
        duration_ms=round(duration_s * 1000, 3),
        request_id=request_id,
        # The client is told only `Internal error`: the reason is found here, by the id.
        **({"exc_info": failure} if status >= 500 and failure is not None else {}),
        **({"reason": str(failure)} if status < 500 and failure is not None else {}),
    )
