"""What a route is: enough to serve it, and to describe it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp.typedefs import Handler
from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Route:
    """One verb on one path.

    Attributes:
        path: below the prefix, with names of ids in braces: `/volumes/{volume_id}`.
        summary: one line for the API's document.
        answer: the body of the 200; None: 204 without one.
        query: the parameters it knows.
        body: the JSON object it takes.
        media_type: of the 200.
        headers: the request headers it knows, all optional.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type[BaseModel] | None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    media_type: str = "application/json"
    headers: tuple[str, ...] = ()
