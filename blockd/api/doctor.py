"""`/host/v1/doctor`: whether catalog, storage and object storage agree, and putting it right."""

from __future__ import annotations

from aiohttp import web

from blockd.api import answers
from blockd.api.render import json_answer
from blockd.api.routes import Route
from blockd.api.wire import FixFindings, parse_body, read_body
from blockd.domain.finding import Finding
from blockd.service import Service
from blockd.service.doctor import Examination


class DoctorHandlers:
    """Two routes of `/host/v1`."""

    def __init__(self, service: Service) -> None:
        self._doctor = service.doctor

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        return [
            Route("GET", "/doctor", self.examine, "What does not agree", answers.Examination),
            Route(
                "POST",
                "/doctor/fix",
                self.fix,
                "Put right what does not agree",
                answers.FixedFindings,
                body=FixFindings,
            ),
        ]

    async def examine(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /doctor: looks now; changes nothing."""
        return json_answer(_examination(await self._doctor.examine()))

    async def fix(self, request: web.Request) -> web.Response:
        """POST /doctor/fix: what became of each, and what there is to be found after it."""
        asked = parse_body(FixFindings, await read_body(request) or b"{}")
        outcomes, after = await self._doctor.fix(asked.ids)
        fixed = [{**_finding(one.finding), "failure": one.failure} for one in outcomes]
        return json_answer({"fixed": fixed, **_examination(after)})


def _examination(examination: Examination) -> dict[str, object]:
    return {
        "examined_at": examination.examined_at,
        "findings": [_finding(finding) for finding in examination.findings],
        "total_count": len(examination.findings),
    }


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "id": finding.id,
        "kind": finding.kind,
        "class": finding.storage_class,
        "subject": finding.subject,
        "explanation": finding.explanation,
        "fix": finding.fix,
        "advice": finding.advice,
    }
