"""Snapshots under `/block`."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.idempotency import answer_once
from blockd.api.query import SnapshotListing, parse_query, resource_id
from blockd.api.render import Render, no_content, text_answer
from blockd.api.routes import Route
from blockd.api.wire import ChangeSnapshot, CreateSnapshot, parse_body, read_body
from blockd.service import Service


class SnapshotHandlers:
    """The snapshot routes of one prefix."""

    def __init__(self, service: Service, render: Render) -> None:
        self._service, self._render = service, render

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        v1 = self._render.v1
        one = answers.Snapshot if v1 else answers.SnapshotV1Alpha1
        many = answers.Snapshots if v1 else answers.SnapshotsV1Alpha1
        path = "/snapshots/{snapshot_id}"
        return [
            Route("GET", "/snapshots", self.list, "List snapshots", many, query=SnapshotListing),
            Route("POST", "/snapshots", self.create, "Snapshot a volume", one, body=CreateSnapshot),
            Route("GET", path, self.get, "Get a snapshot", one),
            Route("PATCH", path, self.change, "Change a snapshot", one, body=ChangeSnapshot),
            Route("DELETE", path, self.delete, "Delete a snapshot", None),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """GET /snapshots."""
        asked = parse_query(SnapshotListing, request)
        condition, page, render = asked.condition(), asked.cut(), self._render.snapshots
        return text_answer(await self._service.snapshots.page(condition, page, render))

    async def create(self, request: web.Request) -> web.Response:
        """POST /snapshots: 200 (not 201) with the snapshot, `creating`."""
        raw = await read_body(request)
        new = parse_body(CreateSnapshot, raw).new()
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.snapshots.create(new, remember),
            self._render.snapshot,
        )

    async def get(self, request: web.Request) -> web.Response:
        """GET /snapshots/{snapshot_id}."""
        snapshot = await self._service.snapshots.get(resource_id(request, "snapshot_id"))
        return text_answer(self._render.snapshot(snapshot))

    async def change(self, request: web.Request) -> web.Response:
        """PATCH /snapshots/{snapshot_id}."""
        snapshot_id = resource_id(request, "snapshot_id")
        change = parse_body(ChangeSnapshot, await read_body(request)).change()
        snapshot = await self._service.snapshots.change(snapshot_id, change)
        return text_answer(self._render.snapshot(snapshot))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /snapshots/{snapshot_id}: into the trash."""
        await self._service.snapshots.delete(resource_id(request, "snapshot_id"))
        return no_content()
