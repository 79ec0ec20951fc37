"""The application: every route, in one place."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from blockd.api import openapi
from blockd.api.answers import Metadata
from blockd.api.attachments import AttachmentHandlers
from blockd.api.backups import BackupHandlers
from blockd.api.doctor import DoctorHandlers
from blockd.api.errors import MAX_BODY_BYTES
from blockd.api.events import EventsHandlers
from blockd.api.groups import GroupHandlers
from blockd.api.host import HostHandlers
from blockd.api.middleware import make_guard
from blockd.api.peer import Peer
from blockd.api.render import JSON_TYPE, Render, json_answer
from blockd.api.routes import Route
from blockd.api.snapshots import SnapshotHandlers
from blockd.api.tokens import Tokens
from blockd.api.transfers import JobHandlers, TransferHandlers
from blockd.api.volumes import VolumeHandlers
from blockd.domain.errors import NotFound
from blockd.service import Service

#: The command-line client and one Terraform action still use the older prefix (wire.md, e).
VERSIONS: Final = ("v1", "v1alpha1")
#: Prometheus' text format.
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def make_app(
    service: Service,
    metrics: Callable[[], Awaitable[bytes]],
    admit: Callable[[Peer], bool],
    tokens: Tokens | None = None,
) -> web.Application:
    """The HTTP application over `service`.

    Args:
        metrics: makes the page of `/metrics`, in Prometheus' text format.
        admit: whether a peer of the Unix socket may use the API; everyone else gets 403.
        tokens: what admits a request over TCP; without one it gets 401.
    """
    zone = service.host.zone
    app = web.Application(middlewares=[make_guard(admit, tokens)], client_max_size=MAX_BODY_BYTES)
    described: dict[str, list[Route]] = {}
    for version in VERSIONS:
        render = Render(zone, v1=version == "v1")
        routes = [
            *VolumeHandlers(service, render).routes(),
            *SnapshotHandlers(service, render).routes(),
            *TransferHandlers(service, render).routes(),
        ]
        # The zone is part of the path: aiohttp then finds lists by dict, not by regex.
        _add(app, f"/block/{version}/zones/{zone}", routes)
        described[f"/block/{version}/zones/{{zone}}"] = routes
        elsewhere = f"{{zone:(?!{re.escape(zone)}/)[^/]+}}"
        app.router.add_route("*", f"/block/{version}/zones/{elsewhere}/{{rest:.*}}", _no_zone)
    events = EventsHandlers(service)
    app.on_shutdown.append(events.end)
    host = [
        *HostHandlers(service).routes(),
        *GroupHandlers(service).routes(),
        *JobHandlers(service).routes(),
        *BackupHandlers(service).routes(),
        *AttachmentHandlers(service).routes(),
        *events.routes(),
        *DoctorHandlers(service).routes(),
    ]
    _add(app, "/host/v1", host)
    described["/host/v1"] = host

    root = _root_routes(metrics, described)
    described[""] = [route for route in root if route.answer is not None]
    _add(app, "", root)
    return app


def _add(app: web.Application, prefix: str, routes: list[Route]) -> None:
    for route in routes:
        # A verb on the collection that we lack (`/snapshots/import-from-…`) is a missing route,
        # not a malformed id.
        path = route.path.replace("_id}", "_id:(?!import-from-)[^{}/]+}")
        app.router.add_route(route.method, prefix + path, route.handler)


async def _no_zone(request: web.Request) -> web.Response:
    raise NotFound("zone", request.match_info["zone"])


def _root_routes(
    metrics: Callable[[], Awaitable[bytes]], described: dict[str, list[Route]]
) -> list[Route]:
    @cache
    def document() -> bytes:
        return to_json(openapi.document(described))

    async def openapi_page(_request: web.Request) -> web.Response:
        return web.Response(body=document(), content_type=JSON_TYPE)

    async def metrics_page(_request: web.Request) -> web.Response:
        return web.Response(body=await metrics(), headers={"Content-Type": METRICS_TYPE})

    async def metadata(_request: web.Request) -> web.Response:
        return json_answer({"domain": "localhost", "partition": "local", "platform": "blockd"})

    return [
        Route("GET", "/metadata", metadata, "What this installation is", Metadata),
        Route("GET", "/metrics", metrics_page, "Prometheus metrics", None),
        Route("GET", "/openapi.json", openapi_page, "This document", None),
    ]
