"""The routes that move snapshots to and from object storage, and those of jobs."""

from __future__ import annotations

from aiohttp import web
from pydantic_core import to_json

from blockd.api import answers
from blockd.api import transfer_bodies as bodies
from blockd.api.idempotency import answer_once
from blockd.api.query import parse_query, resource_id
from blockd.api.render import Render, json_answer
from blockd.api.routes import Route
from blockd.api.wire import parse_body, read_body
from blockd.domain.job import Job
from blockd.service import Service


class TransferHandlers:
    """The routes of one prefix of the cloud's API."""

    def __init__(self, service: Service, render: Render) -> None:
        self._service, self._render = service, render
        self._takes = bodies.ImportSnapshot if render.v1 else bodies.ImportSnapshotV1Alpha1

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        one = answers.Snapshot if self._render.v1 else answers.SnapshotV1Alpha1
        export = "/snapshots/{snapshot_id}/export-to-object-storage"
        takes = self._takes
        routes = [
            Route("POST", export, self.export, "Export", one, body=bodies.ExportSnapshot),
            Route(
                "POST",
                "/snapshots/import-from-object-storage",
                self.import_,
                "Import an image as a snapshot",
                one,
                body=takes,
            ),
        ]
        if not self._render.v1:
            old = "/snapshots/import-from-s3"
            routes.append(Route("POST", old, self.import_, "Import (old name)", one, body=takes))
        return routes

    async def export(self, request: web.Request) -> web.Response:
        """POST …/export-to-object-storage: the snapshot, `exporting`."""
        snapshot_id = resource_id(request, "snapshot_id")
        raw = await read_body(request)
        new = parse_body(bodies.ExportSnapshot, raw).new()
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.transfers.export(snapshot_id, new, remember),
            self._render.snapshot,
        )

    async def import_(self, request: web.Request) -> web.Response:
        """POST …/import-from-object-storage: the new snapshot, `creating`, with its size."""
        raw = await read_body(request)
        new = parse_body(self._takes, raw).new()
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.transfers.import_(new, remember),
            self._render.snapshot,
        )


class JobHandlers:
    """The routes of `/host/v1` about jobs and objects."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Every route, for the application and for its document."""
        job, takes = bodies.Job, bodies.VerifyObject
        return [
            Route("GET", "/jobs", self.list, "List jobs", bodies.Jobs, query=bodies.JobListing),
            Route("GET", "/jobs/{job_id}", self.get, "How far a job is", job),
            Route(
                "POST",
                "/jobs/{job_id}/cancel",
                self.cancel,
                "End a job",
                job,
                body=bodies.CancelJob,
            ),
            Route("POST", "/object-storage/verify", self.verify, "Check", job, body=takes),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """GET /jobs: newest first."""
        asked = parse_query(bodies.JobListing, request)
        jobs, total = await self._service.transfers.jobs(asked.condition(), asked.cut())
        return json_answer({"jobs": [job_fields(job) for job in jobs], "total_count": total})

    async def get(self, request: web.Request) -> web.Response:
        """GET /jobs/{job_id}."""
        job = await self._service.transfers.job(resource_id(request, "job_id"))
        return json_answer(job_fields(job))

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /jobs/{job_id}/cancel: the job as it is; it ends soon."""
        job_id = resource_id(request, "job_id")
        raw = await read_body(request)
        parse_body(bodies.CancelJob, raw or b"{}")
        return json_answer(job_fields(await self._service.transfers.cancel(job_id)))

    async def verify(self, request: web.Request) -> web.Response:
        """POST /object-storage/verify: the job that does it."""
        raw = await read_body(request)
        asked = parse_body(bodies.VerifyObject, raw)
        return await answer_once(
            request,
            raw,
            self._service,
            lambda remember: self._service.transfers.verify(asked.bucket, asked.key, remember),
            lambda job: to_json(job_fields(job)).decode(),
        )


def job_fields(job: Job) -> dict[str, object]:
    """A Job: every key, always."""
    return {
        "id": job.id,
        "kind": job.kind,
        "resource": "snapshot" if job.volume_id is None else "volume",
        "resource_id": job.volume_id or job.snapshot_id,
        "volume_id": job.volume_id,
        "snapshot_id": job.snapshot_id,
        "project_id": job.project_id,
        "bucket": job.bucket,
        "key": job.key,
        "state": job.state,
        "bytes_done": job.bytes_done,
        "bytes_total": job.bytes_total,
        "rate": None if job.rate_bytes_s is None else round(job.rate_bytes_s),
        "eta": None if job.eta_s is None else round(job.eta_s),
        "attempt": job.attempt,
        "error": job.error,
        "content_digest": job.content_digest,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }
