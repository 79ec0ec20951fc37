"""`/host/v1`: what has no counterpart in the cloud's API. The same errors, the same paging."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.idempotency import answer_once
from blockd.api.query import Paging, parse_query, resource_id
from blockd.api.render import Render, json_answer, pool, text_answer
from blockd.api.routes import Route
from blockd.api.wire import RepairPool, RevertVolume, Undelete, parse_body, read_body
from blockd.service import Service


class HostHandlers:
    """The routes of `/host/v1`; its volumes and snapshots say `error` and `deleted_at` too."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._render = Render(service.host.zone)

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        volume, snapshot = "/volumes/{volume_id}", "/snapshots/{snapshot_id}"
        of_volume, of_snapshot = answers.HostVolume, answers.HostSnapshot
        return [
            Route("GET", volume, self.volume, "A volume, and why it failed", of_volume),
            Route("GET", f"{volume}/device", self.device, "A volume's device", answers.Device),
            Route(
                "POST",
                f"{volume}/revert",
                self.revert,
                "Give a volume the content of a snapshot",
                of_volume,
                body=RevertVolume,
            ),
            Route(
                "POST",
                f"{volume}/undelete",
                self.undelete_volume,
                "Take a volume out of the trash",
                of_volume,
                body=Undelete,
            ),
            Route("GET", snapshot, self.snapshot, "A snapshot, and why it failed", of_snapshot),
            Route(
                "POST",
                f"{snapshot}/undelete",
                self.undelete_snapshot,
                "Take a snapshot out of the trash",
                of_snapshot,
                body=Undelete,
            ),
            Route("GET", "/pools", self.pools, "Space by class", answers.Pools, query=Paging),
            Route(
                "POST",
                "/pools/{class_name}/repair",
                self.repair_pool,
                "Have LVM check a pool's metadata, and take it up again",
                answers.Pool,
                body=RepairPool,
            ),
            Route("GET", "/health", self.health, "How the host does", answers.Health),
        ]

    async def volume(self, request: web.Request) -> web.Response:
        """GET /volumes/{volume_id}: in the trash, too, until it is erased."""
        volume_id = resource_id(request, "volume_id")
        volume = await self._service.volumes.get(volume_id, include_deleted=True)
        return text_answer(self._render.host_volume(volume))

    async def snapshot(self, request: web.Request) -> web.Response:
        """GET /snapshots/{snapshot_id}: in the trash, too, until it is erased."""
        snapshot_id = resource_id(request, "snapshot_id")
        snapshot = await self._service.snapshots.get(snapshot_id, include_deleted=True)
        return text_answer(self._render.host_snapshot(snapshot))

    async def device(self, request: web.Request) -> web.Response:
        """GET /volumes/{volume_id}/device: `device_size` in bytes."""
        device = await self._service.volumes.device(resource_id(request, "volume_id"))
        return json_answer({"path": device.path, "device_size": device.size_bytes})

    async def revert(self, request: web.Request) -> web.Response:
        """POST /volumes/{volume_id}/revert: the volume, `updating`."""
        volume_id = resource_id(request, "volume_id")
        raw = await read_body(request)
        asked = parse_body(RevertVolume, raw)
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.volumes.revert(
                volume_id, asked.snapshot_id, asked.keeps_previous, remember
            ),
            self._render.host_volume,
        )

    async def undelete_volume(self, request: web.Request) -> web.Response:
        """POST /volumes/{volume_id}/undelete."""
        volume_id = resource_id(request, "volume_id")
        raw = await self._nothing(request)
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.volumes.undelete(volume_id, remember),
            self._render.host_volume,
        )

    async def undelete_snapshot(self, request: web.Request) -> web.Response:
        """POST /snapshots/{snapshot_id}/undelete."""
        snapshot_id = resource_id(request, "snapshot_id")
        raw = await self._nothing(request)
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.snapshots.undelete(snapshot_id, remember),
            self._render.host_snapshot,
        )

    async def _nothing(self, request: web.Request) -> bytes:
        """The body of a request that needs none: left out, or any JSON object."""
        raw = await read_body(request)
        parse_body(Undelete, raw or b"{}")
        return raw

    async def pools(self, request: web.Request) -> web.Response:
        """GET /pools."""
        asked = parse_query(Paging, request)
        pools = await self._service.host.pools()
        first = (asked.page - 1) * asked.page_size
        page = [pool(use) for use in pools[first : first + asked.page_size]]
        return json_answer({"pools": page, "total_count": len(pools)})

    async def repair_pool(self, request: web.Request) -> web.Response:
        """POST /pools/{class_name}/repair: the pool, as it is then."""
        parse_body(RepairPool, await read_body(request) or b"{}")
        state = await self._service.pool_repair.repair(request.match_info["class_name"])
        return json_answer(pool(state))

    async def health(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /health: 200 even when the host does badly; `status` says how."""
        health = await self._service.host.health()
        return json_answer(
            {
                "status": health.status,
                "version": health.version,
                "zone": health.zone,
                "pools": [pool(use) for use in health.pools],
                "queued": health.queued,
                "catalog_copies": [
                    {
                        "class": copy.storage_class,
                        "written_at": copy.written_at,
                        "behind": round(copy.behind_s, 1),
                    }
                    for copy in health.catalog_copies
                ],
                "problems": list(health.problems),
            }
        )
