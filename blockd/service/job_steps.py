"""How each kind of job is carried out, and what becomes of it when it fails or is cancelled.

`carry_out` may be called again after a crash at any point. An export goes on with the upload of
the attempt before; an import makes its disk anew. `fail` settles what users see, `undo` ends the
upload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import BlockdError, NotFound, StorageError, WrongState
from blockd.domain.intent import Intent
from blockd.domain.job import Compression, Job, JobKind, JobState, Phase
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import CREATING, EXPORTING, Event, move
from blockd.domain.transfer import ExportOrder, ImageFacts, Progress
from blockd.domain.units import now_timestamp
from blockd.service.classes import StorageClasses
from blockd.service.operations import Operations
from blockd.service.ports import Images
from blockd.service.steps import add_erase

log = structlog.get_logger()


class JobSteps:
    """The kinds of jobs, over catalog, storage classes and object storage."""

    def __init__(
        self, catalog: Catalog, classes: StorageClasses, images: Images, operations: Operations
    ) -> None:
        self._catalog, self._classes = catalog, classes
        self._images, self._operations = images, operations

    def begin(self, job_id: str) -> Callable[[Transaction], Job | None]:
        """Note that it runs, once more."""

        def begin(tx: Transaction) -> Job | None:
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
                await self._export(job, progress)
            case JobKind.IMPORT:
                await self._import(job, progress)
            case JobKind.VERIFY:
                await self._verify(job, progress)

    async def _export(self, job: Job, progress: Progress) -> None:
        snapshot = await self._snapshot(job)
        driver = self._classes[snapshot.storage_class].driver
        order = _order(job, snapshot)
        if job.phase is Phase.CREATING:
            await self._abort(job)  # its id was not noted: what there is of it is of no use
        elif job.phase is Phase.COMPLETING:
            object_bytes = await self._images.exported(order)
            if object_bytes is not None:
                progress.total_bytes = progress.done_bytes = object_bytes
                await self._exported(job, str(job.args["content_digest"]), progress)
                return
        async with driver.reading(snapshot.disk) as disk:
            allocation = await driver.allocation(snapshot.disk, snapshot.size_bytes)
            notes = _Notes(self._catalog, job.id)
            done = await self._images.export(order, disk, allocation, notes, progress)
        await self._exported(job, done.content_digest, progress)

    async def _exported(self, job: Job, content_digest: str, progress: Progress) -> None:
        def exported(tx: Transaction) -> None:
            snapshot = _of(tx, job)
            if snapshot is not None and snapshot.status is EXPORTING:
                status = move("snapshot", snapshot.id, snapshot.status, Event.EXPORTED)
                now = now_timestamp()
                tx.put_snapshot(
                    replace(snapshot, status=status, content_digest=content_digest, updated_at=now)
                )
            _end(tx, job.id, JobState.SUCCEEDED, progress, content_digest=content_digest)

        await self._catalog.write("snapshot exported", exported)

    async def _import(self, job: Job, progress: Progress) -> None:
        snapshot = await self._snapshot(job)
        image = _image(job)
        driver = self._classes[snapshot.storage_class].driver
        async with driver.turn():
            await driver.create(snapshot.disk, snapshot.size_bytes)
        async with driver.writing(snapshot.disk) as disk:
            found = await self._images.restore(image, disk, progress)
        if image.content_digest is not None:
            _compare(image, found)
        async with driver.turn():
            await driver.seal(snapshot.disk)

        def imported(tx: Transaction) -> None:
            row = _of(tx, job)
            if row is not None and row.status is CREATING:
                status = move("snapshot", row.id, row.status, Event.CREATED)
                now = now_timestamp()
                tx.put_snapshot(replace(row, status=status, content_digest=found, updated_at=now))
            _end(tx, job.id, JobState.SUCCEEDED, progress, content_digest=found)

        await self._catalog.write("snapshot imported", imported)

    async def _verify(self, job: Job, progress: Progress) -> None:
        image = _image(job)
        if image.content_digest is None:
            raise StorageError(
                f"{_uri(job)} bears no digest, so there is nothing to compare it with: "
                "blockd did not write it, or something was appended to it"
            )
        found = await self._images.verify(image, progress)
        _compare(image, found)

        def verified(tx: Transaction) -> None:
            _end(tx, job.id, JobState.SUCCEEDED, progress, content_digest=found)

        await self._catalog.write("object verified", verified)

    # what is left of a job that does not succeed

    async def fail(self, job_id: str, failure: BaseException | None, progress: Progress) -> None:
        """Settle a job that failed, or was cancelled (`failure` None), and its snapshot.

        The snapshot of an export is whole, and available again; that of an import has no bytes:
        it is in error, and its disk is erased. What was uploaded is left to `undo`.
        """

        def fail(tx: Transaction) -> list[Intent]:
            job = tx.jobs.get(job_id)
            if job is None or job.phase is Phase.ENDED:
                return []
            has_upload = job.phase in (Phase.CREATING, Phase.UPLOADING, Phase.COMPLETING)
            phase = Phase.UNDOING if has_upload else Phase.ENDED
            state = JobState.CANCELLED if failure is None else JobState.FAILED
            error = "cancelled" if failure is None else _reason(failure)
            _end(tx, job_id, state, progress, error=error, phase=phase)
            return _settle_snapshot(tx, job, error)

        if failure is not None:
            expected = isinstance(failure, BlockdError | OSError)
            log.error("job failed", reason=_reason(failure), exc_info=None if expected else failure)
        for intent in await self._catalog.write("job failed", fail):
            self._operations.submit(intent)

    async def undo(self, job: Job) -> str | None:
        """End the upload of a job that failed; why it could not be done, None when it is.

        The job has ended for everybody before this: a server that is away holds up nobody.
        """
        try:
            await self._abort(job)
        except BlockdError as err:
            return f"the upload to {_uri(job)} is not ended yet: {err}"

        def undone(tx: Transaction) -> None:
            row = tx.jobs.get(job.id)
            if row is not None:
                tx.jobs.put(replace(row, phase=Phase.ENDED))

        await self._catalog.write("upload undone", undone)
        return None

    async def _abort(self, job: Job) -> None:
        """End what there is of the job's upload, whether its id is known or not."""
        upload_id = job.args.get("upload_id")
        if isinstance(upload_id, str):
            await self._images.abort(job.bucket, job.key, upload_id)
        before, since = job.args.get("uploads_before"), job.args.get("creating_since")
        if not isinstance(upload_id, str) and isinstance(before, list) and isinstance(since, str):
            await self._images.abort_since(job.bucket, job.key, before, since)

    async def _snapshot(self, job: Job) -> Snapshot:
        snapshot = await self._catalog.read(lambda tx: _of(tx, job))
        if snapshot is None:
            raise NotFound("snapshot", job.snapshot_id or "")
        return snapshot


class _Notes:
    """`ExportNotes` of one job."""

    def __init__(self, catalog: Catalog, job_id: str) -> None:
        self._catalog, self._job_id = catalog, job_id

    async def creating(self, uploads_before: Sequence[str]) -> None:
        args: dict[str, object] = {
            "uploads_before": list(uploads_before),
            "creating_since": now_timestamp(),
            "upload_id": None,
        }
        await self._note(Phase.CREATING, args)

    async def uploading(self, upload_id: str, part_bytes: int) -> None:
        await self._note(Phase.UPLOADING, {"upload_id": upload_id, "part_bytes": part_bytes})

    async def completing(self, content_digest: str) -> None:
        await self._note(Phase.COMPLETING, {"content_digest": content_digest})

    async def _note(self, phase: Phase, args: dict[str, object]) -> None:
        def note(tx: Transaction) -> None:
            job = tx.jobs.get(self._job_id)
            if job is not None:
                tx.jobs.put(replace(job, phase=phase, args={**job.args, **args}))

        await self._catalog.write(f"export {phase}", note)


def _settle_snapshot(tx: Transaction, job: Job, reason: str) -> list[Intent]:
    """Its snapshot after a failure, and the erasure that this takes."""
    row = _of(tx, job)
    if row is None or row.status not in (CREATING, EXPORTING):
        return []
    status = move("snapshot", row.id, row.status, Event.FAILED)
    error = f"import of {_uri(job)}: {reason}" if row.status is CREATING else None
    tx.put_snapshot(replace(row, status=status, error=error, updated_at=now_timestamp()))
    return [] if error is None else [add_erase(tx, row.storage_class, [row.disk], [])]


def _end(
    tx: Transaction,
    job_id: str,
    state: JobState,
    progress: Progress,
    *,
    content_digest: str | None = None,
    error: str | None = None,
    phase: Phase = Phase.ENDED,
) -> None:
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


def _of(tx: Transaction, job: Job) -> Snapshot | None:
    return None if job.snapshot_id is None else tx.snapshot(job.snapshot_id)


def _order(job: Job, snapshot: Snapshot) -> ExportOrder:
    upload_id, part_bytes = job.args.get("upload_id"), job.args.get("part_bytes")
    return ExportOrder(
        job_id=job.id,
        snapshot_id=snapshot.id,
        bucket=job.bucket,
        key=job.key,
        size_bytes=snapshot.size_bytes,
        compression=Compression(str(job.args["compression"])),
        upload_id=upload_id if isinstance(upload_id, str) else None,
        part_bytes=part_bytes if isinstance(part_bytes, int) else None,
    )


def image_args(image: ImageFacts) -> dict[str, object]:
    """What a job keeps of the image that its request looked at."""
    return {
        "etag": image.etag,
        "object_bytes": image.object_bytes,
        "virtual_size_bytes": image.virtual_size_bytes,
        "expected_digest": image.content_digest,
    }


def _image(job: Job) -> ImageFacts:
    digest = job.args["expected_digest"]
    return ImageFacts(
        bucket=job.bucket,
        key=job.key,
        etag=str(job.args["etag"]),
        object_bytes=int(str(job.args["object_bytes"])),
        virtual_size_bytes=int(str(job.args["virtual_size_bytes"])),
        content_digest=None if digest is None else str(digest),
    )


def _compare(image: ImageFacts, found: str | None) -> None:
    if found != image.content_digest:
        raise StorageError(
            f"s3://{image.bucket}/{image.key} is damaged: its content has the digest {found}, "
            f"and {image.content_digest} was exported"
        )


def _uri(job: Job) -> str:
    return f"s3://{job.bucket}/{job.key}"


def _reason(failure: BaseException) -> str:
    return str(failure) or type(failure).__name__
