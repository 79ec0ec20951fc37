"""The same POST twice is answered twice and done once (`Idempotency-Key`).

Remembered with the change itself, in one transaction: a crash leaves both or neither. Errors are
not remembered, so a request that failed can be tried again under its key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiohttp import web

from blockd.api.render import JSON_TYPE
from blockd.domain.errors import BlockdError, InvalidArguments
from blockd.domain.idempotency import AnswerExists, FirstAnswer
from blockd.service import Service

_T = TypeVar("_T")

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotent-Replayed"

_KEY = re.compile(r"[\x20-\x7e]{1,255}")


async def answer_once(
    request: web.Request,
    raw: bytes,
    service: Service,
    act: Callable[[Callable[[_T], FirstAnswer] | None], Awaitable[_T]],
    render: Callable[[_T], str],
) -> web.Response:
    """Do `act`, unless its answer is known, and answer 200 with what `render` makes of it.

    Args:
        raw: the body; with the same key it must be the same, byte for byte.
        act: changes something; given how to render its result, it stores that answer too.

    Raises:
        InvalidArguments: the key is not 1 to 255 printable ASCII characters.
        AlreadyExists: the key was used on this route with another body.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return _answer(render(await act(None)))
    if not _KEY.fullmatch(key):
        help_text = "value must be 1 to 255 printable ASCII characters"
        raise InvalidArguments.one(HEADER, "format", help_text)
    route = f"{request.method} {request.path}"
    digest = hashlib.sha256(raw).hexdigest()

    first = await service.answers.find(key, route, digest)
    if first is None:
        made: list[FirstAnswer] = []

        def remember(result: _T) -> FirstAnswer:
            made.append(FirstAnswer(key, route, digest, 200, render(result)))
            return made[-1]

        try:
            result = await act(remember)
        except (AnswerExists, BlockdError):
            # The same request may have come in twice at once, and the other one been quicker:
            # then what it did is why this one was refused.
            first = await service.answers.find(key, route, digest)
            if first is None:
                raise
        else:
            # What was stored is what is answered: a repetition must not differ from it.
            return _answer(made[-1].body if made else render(result))
    answer = _answer(first.body, first.status)
    answer.headers[REPLAYED] = "true"
    return answer


def _answer(text: str, status: int = 200) -> web.Response:
    return web.Response(status=status, body=text.encode(), content_type=JSON_TYPE)
