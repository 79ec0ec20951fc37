"""One multipart upload: parts that are sent, and an object that is seen to be what was sent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import structlog

from blockd.domain.errors import ObjectMissing, StorageError, UploadGone
from blockd.domain.transfer import ExportNotes, ExportOrder, Progress
from blockd.domain.units import format_size
from blockd.transfer.parts import PartsWriter
from blockd.transfer.s3 import ObjectFacts, ObjectStore
from blockd.transfer.s3_answers import Part
from blockd.transfer.trailer import TRAILER_BYTES, read_trailer

log = structlog.get_logger()

#: The object's metadata that name the job.
JOB = "blockd-job"


class MultipartUpload:
    """One multipart upload of an order; `has` are the parts that the server has of it."""

    def __init__(
        self,
        store: ObjectStore,
        order: ExportOrder,
        upload_id: str,
        part_bytes: int,
        has: Sequence[Part],
    ) -> None:
        self._store, self._order, self._id = store, order, upload_id
        self.part_bytes, self.has = part_bytes, has

    def writer(
        self, buffers: int, progress: Progress, *, parallel: int, clears: bool
    ) -> PartsWriter:
        """Sends parts to it, `parallel` at once, but for those it has; see there for the rest."""
        at_once = asyncio.Semaphore(parallel)
        has = {part.number: part for part in self.has}

        async def send(number: int, data: memoryview) -> str:
            order, there = self._order, has.get(number)
            # Parts are sent several at once: an earlier attempt may have left out one of them.
            if (
                there is not None
                and there.size_bytes == len(data)
                and there.etag == await asyncio.to_thread(_md5, data)
            ):
                progress.skip(len(data))
                return f'"{there.etag}"'
            etag = await self._store.upload_part(
                order.bucket, order.key, self._id, number, data, at_once
            )
            progress.add(len(data))
            return etag

        return PartsWriter(send, part_bytes=self.part_bytes, buffers=buffers, clears=clears)

    async def complete(
        self, etags: dict[int, str], object_bytes: int, content_digest: str, notes: ExportNotes
    ) -> None:
        """Make it the object, if every part is there, and see that it is.

        Each part's ETag was compared with the MD5 of what was sent, so a server that answers with
        the ETag made of them has named the very bytes it joined. With any other answer, or none,
        the object is looked at: whose it is, and how long.
        """
        count = -(-object_bytes // self.part_bytes)
        if sorted(etags) != list(range(1, count + 1)):
            raise StorageError(f"{len(etags)} of {count} parts were sent: the export is not whole")
        order = self._order
        await notes.completing(content_digest)
        in_order = [etags[number] for number in range(1, count + 1)]
        try:
            etag = await self._store.complete_upload(order.bucket, order.key, self._id, in_order)
            if etag == joined_etag(in_order):
                return
        except UploadGone:
            # Completed by a request whose answer was lost, if the object is ours.
            log.warning("the upload is gone, looking whether the object is complete")
        try:
            facts = await self._store.head(order.bucket, order.key)
        except ObjectMissing:
            raise StorageError(
                f"s3://{order.bucket}/{order.key} is not there after its completion: was it, or "
                "its bucket, deleted meanwhile?"
            ) from None
        if not await self._is_ours(facts, joined_etag(in_order)):
            raise StorageError(
                f"s3://{order.bucket}/{order.key} is not what was sent: the server has lost the "
                "upload, or the object was replaced while it was being completed"
            )
        if facts.size_bytes != object_bytes:
            raise StorageError(
                f"the object has {format_size(facts.size_bytes)}, {object_bytes} bytes were sent"
            )

    async def _is_ours(self, facts: ObjectFacts, etag: str | None) -> bool:
        """Whether an object is the one that was sent: by its metadata, its ETag, or its trailer.

        Some servers forget metadata (rclone, when it is started again).
        """
        order = self._order
        if JOB in facts.metadata:
            return facts.metadata[JOB] == order.job_id
        if etag is not None and facts.etag.strip('"') == etag:
            return True
        tail = bytearray(min(TRAILER_BYTES, facts.size_bytes))
        begin = facts.size_bytes - len(tail)
        await self._store.read(order.bucket, order.key, facts.etag, begin, memoryview(tail))
        trailer = read_trailer(bytes(tail), facts.size_bytes)
        return trailer is not None and trailer.job_id == order.job_id


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def joined_etag(etags: Sequence[str]) -> str | None:
    """The ETag of an object joined from parts: the MD5 of their MD5s, and how many they are.

    None where a part's ETag is no MD5 (servers that encrypt). Source: Amazon S3 user guide,
    "Checking object integrity", multipart uploads.
    """
    try:
        sums = [bytes.fromhex(etag.strip('"')) for etag in etags]
    except ValueError:
        return None
    if any(len(one) != hashlib.md5(usedforsecurity=False).digest_size for one in sums):
        return None
    return f"{hashlib.md5(b''.join(sums), usedforsecurity=False).hexdigest()}-{len(sums)}"
