"""The verbs that move snapshots to and from object storage, and the jobs they are."""

from __future__ import annotations

from dataclasses import replace

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import InvalidArguments, NotFound, TransientState
from blockd.domain.intent import disk_name, new_id
from blockd.domain.job import Job, JobFilter, JobKind, JobState, NewExport, NewImport, Phase
from blockd.domain.listing import Page
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import CREATING, Event, move
from blockd.domain.transfer import ImageFacts
from blockd.domain.units import MIN_VOLUME_BYTES, format_size, now_timestamp
from blockd.service.answers import Remember, remember_answer
from blockd.service.classes import StorageClasses
from blockd.service.host import Tenancy
from blockd.service.jobs import Jobs
from blockd.service.ports import Images
from blockd.service.rows import readable_snapshot
from blockd.service.transfer_steps import image_args
from blockd.service.trash import Trash


class Transfers:
    """Exports, imports and verifications; each is a job.

    Errors of the verbs that begin one, besides those named: `ObjectStoreError`, `ImageRefused`;
    nothing was made then.
    """

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        trash: Trash,
        tenancy: Tenancy,
        images: Images,
        jobs: Jobs,
        *,
        max_import_bytes: int,
    ) -> None:
        """`max_import_bytes`: the largest virtual size of an image that is imported."""
        self._catalog, self._classes, self._trash = catalog, classes, trash
        self._tenancy, self._images, self._jobs = tenancy, images, jobs
        self._max_import_bytes = max_import_bytes

    async def export(
        self, snapshot_id: str, new: NewExport, remember: Remember[Snapshot] | None = None
    ) -> Snapshot:
        """Begin to export a snapshot; the answer is `exporting`.

        Raises:
            NotFound: no such snapshot.
            TransientState: it is being made or exported, or something else is exported there.
            PreconditionFailed: it is in error.
        """
        source = await self._catalog.read(lambda tx: readable_snapshot(tx, snapshot_id))
        self._classes.check_there(source)
        await self._images.check_bucket(new.bucket)
        job_id = new_id()

        def begin(tx: Transaction) -> Snapshot:
            snapshot = readable_snapshot(tx, snapshot_id)
            other = tx.jobs.export_to(new.bucket, new.key)
            if other is not None:
                raise TransientState("job", other.id, "writing the same object")
            status = move("snapshot", snapshot_id, snapshot.status, Event.EXPORT)
            snapshot = replace(snapshot, status=status, updated_at=now_timestamp())
            tx.put_snapshot(snapshot)
            args: dict[str, object] = {"compression": str(new.compression)}
            tx.jobs.add(_job(job_id, JobKind.EXPORT, snapshot, new.bucket, new.key, args))
            remember_answer(tx, snapshot, remember)
            return snapshot

        snapshot = await self._catalog.write("snapshot exporting", begin)
        self._jobs.submit(job_id)
        return snapshot

    async def import_(self, new: NewImport, remember: Remember[Snapshot] | None = None) -> Snapshot:
        """Begin to import an object as a snapshot; the answer is `creating`, with its size.

        Raises:
            InvalidArguments: the image is larger than the size asked for, or than is allowed.
            PermissionDenied: no such project.
            NoRoom: the pool is too full.
        """
        project_id = self._tenancy.project(new.project_id, "snapshot")
        storage_class = self._classes.asked(new.storage_class)
        image = await self._images.look(new.bucket, new.key)
        size_bytes = self._import_size(new, image)
        snapshot_id, job_id, now = new_id(), new_id(), now_timestamp()
        snapshot = Snapshot(
            id=snapshot_id,
            project_id=project_id,
            name=new.name if new.name is not None else f"snp-{snapshot_id[:8]}",
            size_bytes=size_bytes,
            storage_class=storage_class.name,
            status=CREATING,
            public=new.public,
            tags=new.tags,
            volume_id=None,
            parent=None,
            disk=disk_name(snapshot_id),
            created_at=now,
            updated_at=now,
        )
        job = _job(job_id, JobKind.IMPORT, snapshot, new.bucket, new.key, image_args(image))

        def begin(tx: Transaction) -> None:
            tx.add_snapshot(snapshot)
            tx.jobs.add(job)
            remember_answer(tx, snapshot, remember)

        needs_bytes = storage_class.driver.volume_bytes(size_bytes)
        async with self._trash.room(storage_class, "snapshot", snapshot_id, needs_bytes):
            await self._catalog.write("snapshot importing", begin)
        self._jobs.submit(job_id)
        return snapshot

    def _import_size(self, new: NewImport, image: ImageFacts) -> int:
        least = max(image.virtual_size_bytes, MIN_VOLUME_BYTES)
        if least > self._max_import_bytes:
            raise InvalidArguments.one(
                "key",
                "constraint",
                f"the image is a disk of {format_size(least)}, and at most "
                f"{format_size(self._max_import_bytes)} are imported (max_import_size)",
            )
        if new.size_bytes is not None and new.size_bytes < least:
            raise InvalidArguments.one(
                "size",
                "constraint",
                f"size must be greater or equal to {least}, the size of the disk in the image",
            )
        return new.size_bytes or least

    async def verify(self, bucket: str, key: str, remember: Remember[Job] | None = None) -> Job:
        """Begin to read an exported object and to check it."""
        image = await self._images.look(bucket, key)
        job = Job(
            id=new_id(),
            kind=JobKind.VERIFY,
            state=JobState.QUEUED,
            project_id=self._tenancy.default_project_id,
            volume_id=None,
            snapshot_id=None,
            bucket=bucket,
            key=key,
            created_at=now_timestamp(),
            phase=Phase.BEGUN,
            args=image_args(image),
        )

        def begin(tx: Transaction) -> None:
            tx.jobs.add(job)
            remember_answer(tx, job, remember)

        await self._catalog.write("object verifying", begin)
        self._jobs.submit(job.id)
        return job

    async def job(self, job_id: str) -> Job:
        """One job as it is now. Raises NotFound."""
        job = await self._catalog.read(lambda tx: tx.jobs.get(job_id))
        if job is None:
            raise NotFound("job", job_id)
        return self._jobs.seen(job)

    async def jobs(self, wanted: JobFilter, page: Page) -> tuple[list[Job], int]:
        """One page, newest first, and how many match in all."""
        jobs, total = await self._catalog.read(lambda tx: tx.jobs.page(wanted, page))
        return [self._jobs.seen(job) for job in jobs], total

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to end; answers it as it is. Raises NotFound, WrongState when it has ended."""
        return await self._jobs.cancel(job_id)


def _job(
    job_id: str,
    kind: JobKind,
    snapshot: Snapshot,
    bucket: str,
    key: str,
    args: dict[str, object],
) -> Job:
    return Job(
        id=job_id,
        kind=kind,
        state=JobState.QUEUED,
        project_id=snapshot.project_id,
        volume_id=None,
        snapshot_id=snapshot.id,
        bucket=bucket,
        key=key,
        created_at=now_timestamp(),
        phase=Phase.BEGUN,
        args=args,
    )
