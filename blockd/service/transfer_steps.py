"""How exports, imports and verifications are carried out, and what becomes of their snapshots.

An export goes on with the upload of the attempt before; an import makes its disk anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import BlockdError, NotFound, StorageError
from blockd.domain.intent import Intent
from blockd.domain.job import Compression, Job, JobState, Phase
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import CREATING, EXPORTING, Event, move
from blockd.domain.transfer import ExportOrder, ImageFacts, Progress
from blockd.domain.units import now_timestamp
from blockd.service.classes import StorageClasses
from blockd.service.erasures import add_erase
from blockd.service.job_ends import end_job
from blockd.service.ports import Images


class TransferSteps:
    """The kinds of jobs on objects, over catalog, storage classes and object storage."""

    def __init__(self, catalog: Catalog, classes: StorageClasses, images: Images) -> None:
        self._catalog, self._classes, self._images = catalog, classes, images

    async def export(self, job: Job, progress: Progress) -> None:
        """A snapshot as an object."""
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
            end_job(tx, job.id, JobState.SUCCEEDED, progress, content_digest=content_digest)

        await self._catalog.write("snapshot exported", exported)

    async def import_(self, job: Job, progress: Progress) -> None:
        """An object as a snapshot, on a disk made anew."""
        snapshot = await self._snapshot(job)
        image = _image(job)
        storage_class = self._classes[snapshot.storage_class]
        driver = storage_class.driver
        try:
            async with driver.turn():
                await driver.create(snapshot.disk, snapshot.size_bytes)
        finally:
            storage_class.promised.pop(snapshot.id, None)
        if storage_class.is_thick:  # holes are not written, so they must be zeros before
            await driver.complete(
                snapshot.disk, snapshot.size_bytes, old_bytes=0, source=None, progress=Progress()
            )
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
            end_job(tx, job.id, JobState.SUCCEEDED, progress, content_digest=found)

        await self._catalog.write("snapshot imported", imported)

    async def verify(self, job: Job, progress: Progress) -> None:
        """An object's content against its digest."""
        image = _image(job)
        if image.content_digest is None:
            raise StorageError(
                f"{_uri(job)} bears no digest, so there is nothing to compare it with: "
                "blockd did not write it, or something was appended to it"
            )
        found = await self._images.verify(image, progress)
        _compare(image, found)

        def verified(tx: Transaction) -> None:
            end_job(tx, job.id, JobState.SUCCEEDED, progress, content_digest=found)

        await self._catalog.write("object verified", verified)

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
            await self._images.abort(*_object(job), upload_id)
        before, since = job.args.get("uploads_before"), job.args.get("creating_since")
        if not isinstance(upload_id, str) and isinstance(before, list) and isinstance(since, str):
            await self._images.abort_since(*_object(job), before, since)

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


def settle_snapshot(tx: Transaction, job: Job, reason: str) -> list[Intent]:
    """Its snapshot after a failure, and the erasure that this takes."""
    row = _of(tx, job)
    if row is None or row.status not in (CREATING, EXPORTING):
        return []
    status = move("snapshot", row.id, row.status, Event.FAILED)
    error = f"import of {_uri(job)}: {reason}" if row.status is CREATING else None
    tx.put_snapshot(replace(row, status=status, error=error, updated_at=now_timestamp()))
    return [] if error is None else [add_erase(tx, row.storage_class, [row.disk], [])]


def _of(tx: Transaction, job: Job) -> Snapshot | None:
    return None if job.snapshot_id is None else tx.snapshot(job.snapshot_id)


def _order(job: Job, snapshot: Snapshot) -> ExportOrder:
    upload_id, part_bytes = job.args.get("upload_id"), job.args.get("part_bytes")
    bucket, key = _object(job)
    return ExportOrder(
        job_id=job.id,
        snapshot_id=snapshot.id,
        bucket=bucket,
        key=key,
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
    bucket, key = _object(job)
    return ImageFacts(
        bucket=bucket,
        key=key,
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
    return "s3://{}/{}".format(*_object(job))


def _object(job: Job) -> tuple[str, str]:
    """Bucket and key, which every transfer has."""
    return job.bucket or "", job.key or ""
