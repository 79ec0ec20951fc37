"""Giving volumes to guests, and snapshots to be read, under `/host/v1`."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.query import resource_id
from blockd.api.render import Render, text_answer
from blockd.api.routes import Route
from blockd.api.wire import Attach, Detach, parse_body, read_body
from blockd.service import Service


class AttachmentHandlers:
    """All answer when it is done: what a guest has is seen in the resource's references."""

    def __init__(self, service: Service) -> None:
        self._service, self._render = service, Render(service.host.zone)

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        volume, snapshot = "/volumes/{volume_id}", "/snapshots/{snapshot_id}"
        given = answers.HostVolume, answers.HostSnapshot
        return [
            Route(
                "POST",
                f"{volume}/attach",
                self.attach,
                "Give a guest a volume",
                given[0],
                body=Attach,
            ),
            Route(
                "POST",
                f"{volume}/detach",
                self.detach,
                "Take a volume from a guest",
                given[0],
                body=Detach,
            ),
            Route(
                "POST",
                f"{snapshot}/attach",
                self.attach_snapshot,
                "Let a guest read a snapshot",
                given[1],
                body=Attach,
            ),
            Route(
                "POST",
                f"{snapshot}/detach",
                self.detach_snapshot,
                "Take a snapshot from a guest",
                given[1],
                body=Detach,
            ),
        ]

    async def attach(self, request: web.Request) -> web.Response:
        """POST /volumes/{volume_id}/attach: the volume, `in_use`."""
        volume_id = resource_id(request, "volume_id")
        asked = parse_body(Attach, await read_body(request))
        await self._service.attachments.attach(volume_id, asked.domain, asked.target, asked.uri)
        return await self._volume(volume_id)

    async def detach(self, request: web.Request) -> web.Response:
        """POST /volumes/{volume_id}/detach: the volume, without that guest."""
        volume_id = resource_id(request, "volume_id")
        asked = parse_body(Detach, await read_body(request) or b"{}")
        await self._service.attachments.detach(volume_id, asked.domain)
        return await self._volume(volume_id)

    async def attach_snapshot(self, request: web.Request) -> web.Response:
        """POST /snapshots/{snapshot_id}/attach: the snapshot, `in_use`."""
        snapshot_id = resource_id(request, "snapshot_id")
        asked = parse_body(Attach, await read_body(request))
        await self._service.attachments.attach_snapshot(
            snapshot_id, asked.domain, asked.target, asked.uri
        )
        return await self._snapshot(snapshot_id)

    async def detach_snapshot(self, request: web.Request) -> web.Response:
        """POST /snapshots/{snapshot_id}/detach: the snapshot, without that guest."""
        snapshot_id = resource_id(request, "snapshot_id")
        asked = parse_body(Detach, await read_body(request) or b"{}")
        await self._service.attachments.detach_snapshot(snapshot_id, asked.domain)
        return await self._snapshot(snapshot_id)

    async def _volume(self, volume_id: str) -> web.Response:
        return text_answer(self._render.host_volume(await self._service.volumes.get(volume_id)))

    async def _snapshot(self, snapshot_id: str) -> web.Response:
        snapshot = await self._service.snapshots.get(snapshot_id)
        return text_answer(self._render.host_snapshot(snapshot))
