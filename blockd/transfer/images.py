"""Images in object storage: implements `service.ports.Images` with S3, NBD and qemu-img."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.errors import ObjectMissing, StoreUnavailable, UploadGone
from blockd.domain.job import Compression
from blockd.domain.transfer import Exported, ExportNotes, ExportOrder, ImageFacts, Progress, Upload
from blockd.domain.volume import OpenDisk
from blockd.transfer.digest import ContentDigest
from blockd.transfer.disk_reader import DiskReader, open_disk
from blockd.transfer.held_tables import held_tables
from blockd.transfer.image_import import ImageImport
from blockd.transfer.laid_out_sink import OPEN_BUFFERS, LaidOutSink, table_parts
from blockd.transfer.multipart import JOB, MultipartUpload
from blockd.transfer.nbd import Buffer, ReadOnlyExport
from blockd.transfer.parts import part_bytes_for
from blockd.transfer.planned_export import PlannedImage
from blockd.transfer.qcow2_header import HEAD_BYTES, check_header
from blockd.transfer.qcow2_plan import Skeleton, SourceView, TargetPlan
from blockd.transfer.qemu_img import Nbd, QemuImg, Raw, View, cpu_s
from blockd.transfer.s3 import ObjectStore
from blockd.transfer.served import ended, served
from blockd.transfer.trailer import TRAILER_BYTES, Trailer, read_trailer, write_trailer

log = structlog.get_logger()

_LAST_LOOK_S = 5.0
_MOST_SKEW = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How objects are cut and what may be used: see `[transfers]` in `etc/blockd.toml`."""

    part_bytes: int
    max_parts: int
    parallel: int
    scratch: Path
    max_scratch_bytes: int


class Images:
    """See the port for what each method promises."""

    def __init__(self, store: ObjectStore, qemu_img: QemuImg, settings: TransferSettings) -> None:
        self._store, self._qemu_img, self._settings = store, qemu_img, settings

    async def check_bucket(self, bucket: str) -> None:
        await self._store.check_bucket(bucket)

    async def look(self, bucket: str, key: str) -> ImageFacts:
        await self._store.check_bucket(bucket)
        facts = await self._store.head(bucket, key)
        size = facts.size_bytes
        head = bytearray(min(HEAD_BYTES, size))
        tail = bytearray(min(TRAILER_BYTES, size))
        if size:
            await self._store.read(bucket, key, facts.etag, 0, memoryview(head))
            await self._store.read(bucket, key, facts.etag, size - len(tail), memoryview(tail))
        header = check_header(bytes(head), size)
        trailer = read_trailer(bytes(tail), size)
        return ImageFacts(
            bucket,
            key,
            facts.etag,
            size,
            header.virtual_size_bytes,
            None if trailer is None else trailer.content_digest,
        )

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        await self._store.abort_upload(bucket, key, upload_id)

    async def abort_since(self, bucket: str, key: str, before: Sequence[str], since: str) -> None:
        # The server's clock may be behind ours, by no more than what signatures allow.
        oldest = datetime.fromisoformat(since) - _MOST_SKEW
        for upload in await self._store.list_uploads(bucket, key):
            if upload.upload_id in before:
                continue
            try:
                is_ours = datetime.fromisoformat(upload.initiated_at) >= oldest
            except (ValueError, TypeError):  # no instant, or one without its zone
                is_ours = False
            if is_ours:
                await self._store.abort_upload(bucket, key, upload.upload_id)

    async def uploads(self, bucket: str) -> list[Upload]:
        return await self._store.list_uploads(bucket, None)

    async def exported(self, order: ExportOrder) -> int | None:
        try:
            facts = await self._store.head(order.bucket, order.key)
        except ObjectMissing:
            return None
        return facts.size_bytes if facts.metadata.get(JOB) == order.job_id else None

    # export

    async def export(
        self,
        order: ExportOrder,
        source: OpenDisk,
        allocation: Allocation | None,
        notes: ExportNotes,
        progress: Progress,
    ) -> Exported:
        try:
            if allocation is not None and order.compression is Compression.NONE:
                return await self._export_planned(order, source, allocation, notes, progress)
            return await self._export_laid_out(order, source, allocation, notes, progress)
        except StoreUnavailable:
            # Some servers have but a 500 for a bucket that was deleted meanwhile.
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(_LAST_LOOK_S):
                    await self._store.check_bucket(order.bucket)
            raise

    async def _export_planned(
        self,
        order: ExportOrder,
        source: OpenDisk,
        allocation: Allocation,
        notes: ExportNotes,
        progress: Progress,
    ) -> Exported:
        plan, digest = TargetPlan(allocation), ContentDigest()
        object_bytes = progress.total_bytes = plan.object_bytes + TRAILER_BYTES
        upload = await self._upload(order, object_bytes, notes, may_resume=True)
        parallel = self._settings.parallel
        async with open_disk(source, order.size_bytes, past_cache=True) as disk:
            image = PlannedImage(plan, disk, upload.part_bytes)
            async with upload.writer(
                parallel + 1, progress, parallel=parallel, clears=False
            ) as parts:
                etags = await image.sent_before(upload.has, digest, progress)
                parts.etags.update(enumerate(etags, 1))
                content_digest = await image.send(
                    parts,
                    digest,
                    lambda content_digest: _trailer(order, content_digest, object_bytes),
                    first=len(etags),
                )
                await upload.complete(parts.etags, object_bytes, content_digest, notes)
        return Exported(content_digest, object_bytes)

    async def _export_laid_out(
        self,
        order: ExportOrder,
        source: OpenDisk,
        allocation: Allocation | None,
        notes: ExportNotes,
        progress: Progress,
    ) -> Exported:
        listed = allocation if allocation is not None else Allocation.full(order.size_bytes)
        # A cluster that cannot be packed is stored as it is; packed ones leave gaps.
        data_bytes = listed.allocated_clusters * CLUSTER_BYTES * 9 // 8 + 1024**2
        skeleton = Skeleton(listed, order.compression, most_bytes=data_bytes)
        most_bytes = skeleton.data_start_bytes + data_bytes
        upload = await self._upload(order, most_bytes + TRAILER_BYTES, notes, may_resume=False)
        table_bytes = table_parts(skeleton, upload.part_bytes) * upload.part_bytes
        parallel = self._settings.parallel
        buffers = max(parallel + 2, OPEN_BUFFERS + 1)
        async with AsyncExitStack() as stack:
            disk = await stack.enter_async_context(
                open_disk(source, order.size_bytes, past_cache=False)
            )
            tables = await stack.enter_async_context(
                held_tables(self._settings.scratch, table_bytes, self._settings.max_scratch_bytes)
            )
            parts = await stack.enter_async_context(
                upload.writer(buffers, progress, parallel=parallel, clears=True)
            )
            sink = LaidOutSink(skeleton, parts, tables, most_bytes)
            await sink.prepare()
            content_digest = await self._lay_out(order, source, disk, allocation, listed, sink)
            object_bytes = sink.image_bytes + TRAILER_BYTES
            progress.total_bytes = object_bytes
            await sink.close(_trailer(order, content_digest, object_bytes))
            await upload.complete(parts.etags, object_bytes, content_digest, notes)
            held_bytes = tables.scratch_bytes
        if held_bytes:
            log.info("held on scratch", bytes=held_bytes, share=held_bytes / object_bytes)
        return Exported(content_digest, object_bytes)

    async def _lay_out(
        self,
        order: ExportOrder,
        source: OpenDisk,
        disk: DiskReader,
        allocation: Allocation | None,
        listed: Allocation,
        sink: LaidOutSink,
    ) -> str:
        """Let qemu-img write the image into the sink; the content digest, made beside it.

        Args:
            listed: all that may hold data.
        """
        async with AsyncExitStack() as stack:
            writes = await stack.enter_async_context(served(sink))
            node: View | Raw = Raw(order.size_bytes)
            if allocation is not None:
                view = _ViewExport(SourceView(allocation))
                node = View(await stack.enter_async_context(served(view)))
            digesting = asyncio.create_task(disk.digest(listed), name="content digest")
            stack.push_async_callback(ended, digesting)
            await self._qemu_img.convert(
                node,
                Nbd(writes, "qcow2"),
                disk=source,
                compress=order.compression is not Compression.NONE,
                cpu_s=cpu_s(listed.allocated_bytes) * 10,
            )
            return await digesting

    async def _upload(
        self, order: ExportOrder, most_bytes: int, notes: ExportNotes, *, may_resume: bool
    ) -> MultipartUpload:
        """The upload of an earlier attempt if it can go on, else a new one."""
        if order.upload_id is not None and order.part_bytes is not None:
            # Parts were as odd as their setting once; then they end within clusters.
            if may_resume and order.part_bytes % CLUSTER_BYTES == 0:
                try:
                    has = await self._store.list_parts(order.bucket, order.key, order.upload_id)
                except UploadGone:
                    log.warning("the upload of an earlier attempt is gone, beginning again")
                else:
                    return MultipartUpload(
                        self._store, order, order.upload_id, order.part_bytes, has
                    )
            else:
                await self._store.abort_upload(order.bucket, order.key, order.upload_id)
        settings = self._settings
        part_bytes = part_bytes_for(most_bytes, settings.part_bytes, settings.max_parts)
        uploads = await self._store.list_uploads(order.bucket, order.key)
        await notes.creating([upload.upload_id for upload in uploads])
        metadata = {JOB: order.job_id, "blockd-snapshot": order.snapshot_id}
        upload_id = await self._store.create_upload(order.bucket, order.key, metadata)
        await notes.uploading(upload_id, part_bytes)
        return MultipartUpload(self._store, order, upload_id, part_bytes, [])

    # import

    async def restore(self, image: ImageFacts, target: OpenDisk, progress: Progress) -> str:
        return await self._import(image, progress).restore(target)

    async def verify(self, image: ImageFacts, progress: Progress) -> str:
        return await self._import(image, progress).verify()

    def _import(self, image: ImageFacts, progress: Progress) -> ImageImport:
        at_once = self._settings.parallel
        return ImageImport(self._store, self._qemu_img, image, progress, at_once=at_once)


class _ViewExport(ReadOnlyExport):
    """A source view, served."""

    def __init__(self, view: SourceView) -> None:
        self.size_bytes, self._view = view.size_bytes, view

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        if length <= CLUSTER_BYTES:  # one table: made in less time than a thread is woken in
            return [self._view.read(offset, length)]
        return [await asyncio.to_thread(self._view.read, offset, length)]


def _trailer(order: ExportOrder, content_digest: str, object_bytes: int) -> bytes:
    return write_trailer(
        Trailer(content_digest, order.snapshot_id, order.job_id, order.size_bytes, object_bytes)
    )
