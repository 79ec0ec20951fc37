"""Every kind of job: how it begins, who carries it out, and what becomes of it when it fails.

`carry_out` may be called again after a crash at any point. `fail` settles what users see, `undo`
ends the upload of a transfer. The kinds themselves: `transfer_steps.py`, `thick_steps.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import BlockdError, NotFound, PreconditionFailed, WrongState
from blockd.domain.intent import Intent
from blockd.domain.job import TRANSFERS, Job, JobKind, JobState, Phase
from blockd.domain.transfer import Progress
from blockd.domain.units import now_timestamp
from blockd.service.classes import StorageClasses
from blockd.service.job_ends import end_job, how_it_ended, reason_of
from blockd.service.operations import Operations
from blockd.service.ports import Images
from blockd.service.thick_steps import ThickSteps
from blockd.service.transfer_steps import TransferSteps, settle_snapshot

log = structlog.get_logger()


class JobSteps:
    """The kinds of jobs, over catalog, storage classes and object storage."""

    def __init__(
        self, catalog: Catalog, classes: StorageClasses, images: Images, operations: Operations
    ) -> None:
        self._catalog, self._classes, self._operations = catalog, classes, operations
        self._transfers = TransferSteps(catalog, classes, images)
        self._thick = ThickSteps(catalog, classes)

    def begin(self, job_id: str, forget_before: str) -> Callable[[Transaction], Job | None]:
        """Note that it runs, once more; jobs that ended before an instant are forgotten."""

        def begin(tx: Transaction) -> Job | None:
            tx.jobs.forget(forget_before)
            job = tx.jobs.get(job_id)
            if job is None or job.has_ended:
                return None
            started_at = job.started_at or now_timestamp()
            job = replace(
                job, state=JobState.RUNNING, started_at=started_at, attempt=job.attempt + 1
            )
            tx.jobs.put(job)
            return job

        return begin

    def note_cancel(self, job_id: str) -> Callable[[Transaction], Job]:
        """Note that it is to be ended, so that no later daemon goes on with it."""

        def note(tx: Transaction) -> Job:
            job = tx.jobs.get(job_id)
            if job is None:
                raise NotFound("job", job_id)
            if job.has_ended:
                raise WrongState("job", job_id, job.state, "cancel")
            if job.kind not in TRANSFERS and job.phase is not Phase.BEGUN:
                raise PreconditionFailed("resource_not_usable", _why_too_late(job))
            job = replace(job, args={**job.args, "cancelled": True})
            tx.jobs.put(job)
            return job

        return note

    async def carry_out(self, job: Job, progress: Progress) -> None:
        """To its good end, commit included.

        Raises:
            BlockdError: it failed; `fail` settles it.
        """
        match job.kind:
            case JobKind.EXPORT:
                await self._transfers.export(job, progress)
            case JobKind.IMPORT:
                await self._transfers.import_(job, progress)
            case JobKind.VERIFY:
                await self._transfers.verify(job, progress)
            case JobKind.CREATE | JobKind.CLONE:
                await self._thick.create(job, progress)
            case JobKind.GROW:
                await self._thick.grow(job, progress)
            case JobKind.REVERT:
                await self._thick.revert(job, progress)

    async def fail(self, job_id: str, failure: BaseException | None, progress: Progress) -> None:
        """Settle a job that failed, or was stopped (`failure` None), and what it was about.

        The snapshot of an export is whole, and available again; that of an import has no bytes:
        it is in error, and its disk is erased, as is a volume that was being made. One that was
        being grown or reverted is what it was. What was uploaded is left to `undo`.

        Raises:
            BlockdError: it can only go forward, and must be tried again.
        """
        job = await self._catalog.read(lambda tx: tx.jobs.get(job_id))
        if job is None or job.phase is Phase.ENDED:
            return
        if failure is not None:
            expected = isinstance(failure, BlockdError | OSError)
            reason, trace = reason_of(failure), None if expected else failure
            log.error("job failed", kind=job.kind, reason=reason, exc_info=trace)
        for storage_class in self._classes:
            for promised in (job.id, job.volume_id, job.snapshot_id):
                storage_class.promised.pop(promised or "", None)
        if job.kind in TRANSFERS:
            intents = await self._catalog.write("job failed", _failed(job_id, failure, progress))
        else:
            intents = await self._thick.fail(job, failure, progress)
        for intent in intents:
            self._operations.submit(intent)

    async def undo(self, job: Job) -> str | None:
        """End the upload of a job that failed; why it could not be done, None when it is."""
        return await self._transfers.undo(job)


def _why_too_late(job: Job) -> str:
    if job.phase is Phase.SHOWING:
        return f"job {job.id} is at its end"
    return (
        f"job {job.id}: volume {job.volume_id} is being merged with its snapshot, and what it held "
        "is partly gone: wait for the end"
    )


def _failed(
    job_id: str, failure: BaseException | None, progress: Progress
) -> Callable[[Transaction], list[Intent]]:
    def fail(tx: Transaction) -> list[Intent]:
        job = tx.jobs.get(job_id)
        if job is None or job.phase is Phase.ENDED:
            return []
        has_upload = job.phase in (Phase.CREATING, Phase.UPLOADING, Phase.COMPLETING)
        phase = Phase.UNDOING if has_upload else Phase.ENDED
        state, error = how_it_ended(job, failure)
        end_job(tx, job_id, state, progress, error=error, phase=phase)
        return settle_snapshot(tx, job, error)

    return fail
