"""Giving volumes to guests, under `/host/v1`."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.query import resource_id
from blockd.api.render import Render, text_answer
from blockd.api.routes import Route
from blockd.api.wire import AttachVolume, DetachVolume, parse_body, read_body
from blockd.service import Service


class AttachmentHandlers:
    """Both answer when it is done: what a guest has is seen in the volume's references."""

    def __init__(self, service: Service) -> None:
        self._service, self._render = service, Render(service.host.zone)

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        path, one = "/volumes/{volume_id}", answers.HostVolume
        return [
            Route(
                "POST",
                f"{path}/attach",
                self.attach,
                "Give a guest a volume",
                one,
                body=AttachVolume,
            ),
            Route(
                "POST",
                f"{path}/detach",
                self.detach,
                "Take a volume from a guest",
                one,
                body=DetachVolume,
            ),
        ]

    async def attach(self, request: web.Request) -> web.Response:
        """POST /volumes/{volume_id}/attach: the volume, `in_use`."""
        volume_id = resource_id(request, "volume_id")
        asked = parse_body(AttachVolume, await read_body(request))
        await self._service.attachments.attach(volume_id, asked.domain, asked.target, asked.uri)
        return await self._volume(volume_id)

    async def detach(self, request: web.Request) -> web.Response:
        """POST /volumes/{volume_id}/detach: the volume, without that guest."""
        volume_id = resource_id(request, "volume_id")
        asked = parse_body(DetachVolume, await read_body(request) or b"{}")
        await self._service.attachments.detach(volume_id, asked.domain)
        return await self._volume(volume_id)

    async def _volume(self, volume_id: str) -> web.Response:
        return text_answer(self._render.host_volume(await self._service.volumes.get(volume_id)))
