"""`/host/v1/groups/snapshots`: snapshots of several volumes at one instant."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.idempotency import answer_once
from blockd.api.query import resource_id
from blockd.api.render import Render, text_answer
from blockd.api.routes import Route
from blockd.api.wire import SnapshotGroup, parse_body, read_body
from blockd.service import Service


class GroupHandlers:
    """Two routes of `/host/v1`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._render = Render(service.host.zone)

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        path = "/groups/snapshots"
        return [
            Route(
                "POST",
                path,
                self.create,
                "Snapshot several volumes at one instant, all of them or none",
                answers.Group,
                body=SnapshotGroup,
            ),
            Route(
                "GET", f"{path}/{{group_id}}", self.get, "Snapshots taken together", answers.Group
            ),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """POST /groups/snapshots: the group, once its snapshots are taken."""
        raw = await read_body(request)
        new = parse_body(SnapshotGroup, raw).new()
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.groups.create(new, remember),
            self._render.group,
        )

    async def get(self, request: web.Request) -> web.Response:
        """GET /groups/snapshots/{group_id}: without those that are deleted."""
        group = await self._service.groups.get(resource_id(request, "group_id"))
        return text_answer(self._render.group(group))
