"""Long work: a task per job, so many at once, each of which can be cancelled and goes on after a
restart.

A job's row is its journal: `phase` is empty when nothing of it is left to be done or undone.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal, Self

import structlog

from blockd.catalog import Catalog
from blockd.domain.errors import Unavailable
from blockd.domain.job import TRANSFERS, Job, JobKind, JobState, Phase
from blockd.domain.transfer import Progress
from blockd.domain.units import format_timestamp, now_timestamp
from blockd.domain.volume import Volume
from blockd.service.job_steps import JobSteps
from blockd.service.retries import Retries

log = structlog.get_logger()

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0

#: More disks written over at once would take longer for all. Merges are the kernel's work, and each
#: keeps a volume from its users until it ends, so they wait for nobody else.
_WRITTEN_AT_ONCE = 2
_MERGED_AT_ONCE = 4


class Jobs:
    """Carries jobs out.

    `retries.problems` holds a line for each that left something it cannot undo yet.
    """

    def __init__(
        self, catalog: Catalog, steps: JobSteps, *, concurrency: int, keep_s: float
    ) -> None:
        """Those of a sort that find no slot wait, first come, first served.

        Args:
            concurrency: how many transfers run at once.
            keep_s: how long the record of a job that ended is kept.
        """
        self._catalog, self._steps = catalog, steps
        self._transfer_slots = asyncio.Semaphore(concurrency)
        self._write_slots = asyncio.Semaphore(_WRITTEN_AT_ONCE)
        self._merge_slots = asyncio.Semaphore(_MERGED_AT_ONCE)
        self._keep = timedelta(seconds=keep_s)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}
        self._progress: dict[str, Progress] = {}
        self.retries: Retries[str] = Retries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop all of them where they are: the journal takes them up at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            log.warning("parked jobs until the next start", count=len(tasks))

    def try_again(self) -> None:
        """What is not settled is tried at once: some trouble has ended."""
        self.retries.all_again()

    async def under_way(self) -> int:
        """How many jobs have something left to be done or undone, as the journal has it."""
        return len(await self._catalog.read(lambda tx: tx.jobs.unfinished()))

    async def recover(self) -> None:
        """Take up what an earlier daemon left unfinished, in the order in which it was begun."""
        for job in await self._catalog.read(lambda tx: tx.jobs.unfinished()):
            log.warning("taking up unfinished job", job_id=job.id, kind=job.kind, phase=job.phase)
            self.submit(job.id)

    def submit(self, job_id: str) -> None:
        """Begin a job whose row is committed; the task stays ours."""
        self._cancelled[job_id] = asyncio.Event()
        task = asyncio.create_task(self._run(job_id), name=f"job {job_id}")
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: self._gone(job_id))

    def _gone(self, job_id: str) -> None:
        self._tasks.pop(job_id, None)
        self._cancelled.pop(job_id, None)

    def seen(self, job: Job) -> Job:
        """The job with what only this process knows: how far it is, and how fast."""
        progress = self._progress.get(job.id)
        if progress is None or job.has_ended:
            return job
        return replace(
            job,
            bytes_done=progress.done_bytes,
            bytes_total=progress.total_bytes,
            rate_bytes_s=progress.rate_bytes_s,
            eta_s=progress.eta_s,
        )

    async def cancel(self, job_id: str) -> Job:
        """End a job and undo what it has done; answered at once.

        Raises:
            NotFound: there is no such job.
            WrongState: it has ended.
        """
        job = await self._catalog.write("job cancelling", self._steps.note_cancel(job_id))
        self.stop(job_id)
        return self.seen(job)

    def stop(self, job_id: str) -> None:
        """End a job whose row says why it is not to be gone on with."""
        if (event := self._cancelled.get(job_id)) is not None:
            event.set()

    async def _run(self, job_id: str) -> None:
        """Try until nothing is left to be done or undone."""
        retry_s = _FIRST_RETRY_S
        with structlog.contextvars.bound_contextvars(job_id=job_id):
            while True:
                try:
                    left = await self._attempt(job_id)
                except Exception as err:
                    log.exception("job not settled, will be tried again")
                    left = str(err) or type(err).__name__
                if left is None:
                    self.retries.succeeded(job_id)
                    return
                problem = f"job {job_id}: {left}; tried again in {retry_s:.0f} s"
                pause_s = retry_s * random.uniform(0.75, 1.25)  # noqa: S311
                await self.retries.pause(job_id, problem, pause_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)

    async def _attempt(self, job_id: str) -> str | None:
        """Carry it out, and undo what a failure left; why that is not done yet, or None."""
        job = await self._catalog.read(lambda tx: tx.jobs.get(job_id))
        if job is None or not job.phase:
            return None
        if not job.has_ended:
            slots = self._slots(job.kind)
            if not job.is_stopped and await self._slot_or_cancelled(job_id, slots):
                try:
                    await self._work(job_id)
                finally:
                    slots.release()
            else:
                await self._steps.fail(job_id, None, Progress())
            job = await self._catalog.read(lambda tx: tx.jobs.get(job_id))
        return None if job is None or not job.phase else await self._steps.undo(job)

    def _slots(self, kind: JobKind) -> asyncio.Semaphore:
        if kind in TRANSFERS:
            return self._transfer_slots
        return self._merge_slots if kind is JobKind.REVERT else self._write_slots

    async def _slot_or_cancelled(self, job_id: str, slots: asyncio.Semaphore) -> bool:
        """Wait for a slot; whether it was got before somebody cancelled the job."""
        acquiring = asyncio.ensure_future(slots.acquire())
        cancelling = asyncio.ensure_future(self._cancelled[job_id].wait())
        try:
            await asyncio.wait([acquiring, cancelling], return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await _give_back(acquiring, slots)
            raise
        finally:
            cancelling.cancel()
        if acquiring.done():
            return True
        await _give_back(acquiring, slots)
        return False

    async def _work(self, job_id: str) -> None:
        """Within a slot: to its end, whichever; the row then says what is left to be undone."""
        forget_before = format_timestamp(datetime.now(UTC) - self._keep)
        begin = self._steps.begin(job_id, forget_before)
        job = await self._catalog.write("job running", begin)
        if job is None:
            return
        progress = self._progress[job_id] = Progress()
        working = asyncio.create_task(
            self._steps.carry_out(job, progress), name=f"work of {job_id}"
        )
        cancelling = asyncio.ensure_future(self._cancelled[job_id].wait())
        try:
            await asyncio.wait([working, cancelling], return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when the daemon stops: the work ends where it is, and is taken up again
            cancelling.cancel()
            working.cancel()
            await asyncio.wait([working])
            del self._progress[job_id]
        failure = None if working.cancelled() else working.exception()
        if isinstance(failure, Unavailable):
            raise failure  # it has not failed: it goes on where it is, later
        if working.cancelled() or failure is not None:
            await self._steps.fail(job_id, failure, progress)


async def _give_back(acquiring: asyncio.Task[Literal[True]], slots: asyncio.Semaphore) -> None:
    """Stop waiting for a slot, and release the one that came at the same moment."""
    acquiring.cancel()
    await asyncio.wait([acquiring])
    if not acquiring.cancelled():
        slots.release()


def volume_job(
    job_id: str,
    kind: JobKind,
    volume: Volume,
    snapshot_id: str | None,
    args: dict[str, object],
) -> Job:
    """The row of a job on a volume, to be committed with the volume's new status."""
    return Job(
        id=job_id,
        kind=kind,
        state=JobState.QUEUED,
        project_id=volume.project_id,
        volume_id=volume.id,
        snapshot_id=snapshot_id,
        bucket=None,
        key=None,
        created_at=now_timestamp(),
        phase=Phase.BEGUN,
        args=args,
    )
