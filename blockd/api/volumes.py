"""Volumes and their types under `/block`."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.idempotency import answer_once
from blockd.api.query import Paging, VolumeListing, parse_query, resource_id
from blockd.api.render import Render, json_answer, no_content, text_answer
from blockd.api.routes import Route
from blockd.api.wire import ChangeVolume, CreateVolume, parse_body, read_body
from blockd.service import Service


class VolumeHandlers:
    """The volume routes of one prefix."""

    def __init__(self, service: Service, render: Render) -> None:
        self._service, self._render = service, render

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        v1 = self._render.v1
        one = answers.Volume if v1 else answers.VolumeV1Alpha1
        many = answers.Volumes if v1 else answers.VolumesV1Alpha1
        path = "/volumes/{volume_id}"
        return [
            Route("GET", "/volumes", self.list, "List volumes", many, query=VolumeListing),
            Route("POST", "/volumes", self.create, "Create a volume", one, body=CreateVolume),
            Route("GET", path, self.get, "Get a volume", one),
            Route("PATCH", path, self.change, "Change or grow a volume", one, body=ChangeVolume),
            Route("DELETE", path, self.delete, "Delete a volume", None),
            Route(
                "GET",
                "/volume-types",
                self.types,
                "List volume types",
                answers.VolumeTypes,
                query=Paging,
            ),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """GET /volumes."""
        asked = parse_query(VolumeListing, request)
        condition, page, render = asked.condition(), asked.cut(), self._render.volumes
        return text_answer(await self._service.volumes.page(condition, page, render))

    async def create(self, request: web.Request) -> web.Response:
        """POST /volumes: 200 (not 201) with the volume, `creating`."""
        raw = await read_body(request)
        new = parse_body(CreateVolume, raw).new()
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.volumes.create(new, remember),
            self._render.volume,
        )

    async def get(self, request: web.Request) -> web.Response:
        """GET /volumes/{volume_id}."""
        volume = await self._service.volumes.get(resource_id(request, "volume_id"))
        return text_answer(self._render.volume(volume))

    async def change(self, request: web.Request) -> web.Response:
        """PATCH /volumes/{volume_id}: a new size is in the answer when it is in force."""
        volume_id = resource_id(request, "volume_id")
        change = parse_body(ChangeVolume, await read_body(request)).change()
        volume = await self._service.volumes.change(volume_id, change)
        return text_answer(self._render.volume(volume))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /volumes/{volume_id}: into the trash."""
        await self._service.volumes.delete(resource_id(request, "volume_id"))
        return no_content()

    async def types(self, request: web.Request) -> web.Response:
        """GET /volume-types."""
        asked = parse_query(Paging, request)
        types = self._service.host.volume_types()
        first = (asked.page - 1) * asked.page_size
        page = [
            {
                "type": kind.type,
                "pricing": None,
                "snapshot_pricing": None,
                "specs": {"class": kind.storage_class, "perf_iops": kind.perf_iops},
                "zone": self._render.zone,
            }
            for kind in types[first : first + asked.page_size]
        ]
        return json_answer({"volume_types": page, "total_count": len(types)})
