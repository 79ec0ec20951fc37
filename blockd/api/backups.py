"""`/host/v1/backups`: backups of what LVM and dm-thin know, not of the volumes' bytes."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.query import Paging, parse_query
from blockd.api.render import backup, json_answer
from blockd.api.routes import Route
from blockd.api.wire import TakeBackup, parse_body, read_body
from blockd.service import Service


class BackupHandlers:
    """The routes of backups."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        path, all_of_them = "/backups", answers.Backups
        return [
            Route("GET", path, self.list, "Backups of metadata", all_of_them, query=Paging),
            Route("POST", path, self.take, "Back up metadata now", all_of_them, body=TakeBackup),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """GET /backups."""
        asked = parse_query(Paging, request)
        backups = await self._service.backups.listed()
        first = (asked.page - 1) * asked.page_size
        page = [backup(each) for each in backups[first : first + asked.page_size]]
        return json_answer({"backups": page, "total_count": len(backups)})

    async def take(self, request: web.Request) -> web.Response:
        """POST /backups: answers when all are safe. Asked twice, two are taken."""
        asked = parse_body(TakeBackup, await read_body(request) or b"{}")
        taken = await self._service.backups.take_all(asked.storage_class)
        return json_answer({"backups": [backup(each) for each in taken], "total_count": len(taken)})
