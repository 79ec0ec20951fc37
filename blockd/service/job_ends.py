"""What every kind of job has in common when it ends."""

from __future__ import annotations

from dataclasses import replace

from blockd.catalog import Transaction
from blockd.domain.job import Job, JobState, Phase
from blockd.domain.transfer import Progress
from blockd.domain.units import now_timestamp


def end_job(
    tx: Transaction,
    job_id: str,
    state: JobState,
    progress: Progress,
    *,
    content_digest: str | None = None,
    error: str | None = None,
    phase: Phase = Phase.ENDED,
) -> None:
    """Note that the job stands for good, and how far it came."""
    job = tx.jobs.get(job_id)
    if job is not None:
        tx.jobs.put(
            replace(
                job,
                state=state,
                phase=phase,
                content_digest=content_digest,
                error=error,
                bytes_done=progress.done_bytes,
                bytes_total=progress.total_bytes,
                finished_at=now_timestamp(),
            )
        )


def how_it_ended(job: Job, failure: BaseException | None) -> tuple[JobState, str]:
    """State and reason of a job that did not succeed; `failure` None: it was stopped."""
    if job.lost is not None:
        return JobState.FAILED, job.lost
    if failure is None or job.is_cancelled:
        return JobState.CANCELLED, "cancelled"
    return JobState.FAILED, reason_of(failure)


def reason_of(failure: BaseException) -> str:
    """One line."""
    return str(failure) or type(failure).__name__
