"""aiohttp's connection handler, with JSON where aiohttp itself would answer in plain text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.web_request import BaseRequest

from blockd.api.errors import error_answer, http_answer, malformed_answer
from blockd.api.middleware import REQUEST_ID

log = structlog.get_logger()


class JsonProtocol(web.RequestHandler):
    """One connection. What fails before a request reaches the application is answered here.

    That is malformed HTTP, an unknown method, headers that are too long, a false `Expect`: Python
    clients raise JSONDecodeError on a plain-text body, and Go's drop it (wire.md, c).

    Attributes:
        when_lost: called when the connection is lost: a handler goes on, and would not know.
    """

    __slots__ = ("when_lost",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.when_lost: Callable[[], None] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has left, or was let go."""
        super().connection_lost(exc)
        if self.when_lost is not None:
            self.when_lost()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request; always the connection's last.

        Raises:
            ConnectionError: an answer is under way already, or nobody is there to read one.
        """
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError("no answer can be given") from exc
        request_id = str(uuid4())
        if status == 400:
            reason = " ".join((message or "").split()) or "not an HTTP request"
            answer = malformed_answer(reason)
            log.info("malformed request", status=status, reason=reason, request_id=request_id)
        else:
            answer = error_answer(exc or RuntimeError(message))
            log.error("request failed", status=500, exc_info=exc, request_id=request_id)
        answer.headers[REQUEST_ID] = request_id
        answer.force_close()
        return answer

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send `resp`; an exception that was raised outside the middleware becomes JSON first."""
        if isinstance(resp, web.HTTPException):
            resp = http_answer(resp, request.method, request.rel_url.raw_path)
            resp.headers[REQUEST_ID] = str(uuid4())
        return await super().finish_response(request, resp, start_time)
