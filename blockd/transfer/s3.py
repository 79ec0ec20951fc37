"""Object storage: what of the S3 API blockd needs. How requests are made: `s3_requests.py`.

Answers are not trusted: their length and ETag are compared.

Source: Amazon S3 API reference; MinIO and rclone where they differ, said at the place.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

import aiohttp

from blockd.domain.effects import SideEffects
from blockd.domain.errors import (
    BucketUnfit,
    ObjectChanged,
    ObjectMissing,
    ObjectStoreError,
    StoreUnavailable,
    UploadGone,
)
from blockd.domain.transfer import Upload
from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.s3_answers import (
    Fault,
    Part,
    fault_of,
    parse_document,
    parse_parts,
    parse_uploads,
    refusal,
)
from blockd.transfer.s3_body import Filling
from blockd.transfer.s3_requests import (
    DEFAULT_REGION,
    UNSIGNED,
    Buffer,
    Endpoint,
    Keys,
    Requests,
    open_requests,
)
from blockd.transfer.s3_retry import Patience, Transient

_PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What the server says of an object."""

    size_bytes: int
    etag: str
    metadata: Mapping[str, str]


class ObjectStore:
    """One server. Made by `open_object_store`.

    Raises of all methods:
        StoreUnavailable: no answer that is one, for as long as we were patient.
        BucketUnfit: the bucket is not there, or not for us.
        ObjectStoreError: credentials, clock, region: the message says what is wrong.
    """

    def __init__(self, requests: Requests, effects: SideEffects, bandwidth: Bandwidth) -> None:
        self._requests, self._effects, self._bandwidth = requests, effects, bandwidth
        self._patience = requests.patience
        self._is_private = requests.endpoint.url.startswith("https:")

    # buckets and objects

    async def check_bucket(self, bucket: str) -> None:
        """See that it exists and lies in our region."""
        body = await self._requests.small("GET", bucket, "", {"location": ""})
        document = parse_document(body)
        region = (document.text or "").strip() or DEFAULT_REGION
        if region != self._requests.endpoint.region:
            raise BucketUnfit(
                f"bucket {bucket} lies in region {region}, and blockd is set up for "
                f"{self._requests.endpoint.region}: choose another bucket"
            )

    async def head(self, bucket: str, key: str) -> ObjectFacts:
        """Raises ObjectMissing."""

        async def look() -> ObjectFacts:
            async with self._requests.request("HEAD", bucket, key) as answer:
                if answer.status == 404:
                    raise ObjectMissing(bucket, key)
                await self._requests.check(answer, bucket, key)
                prefix = "x-amz-meta-"
                metadata = {
                    name.lower().removeprefix(prefix): value
                    for name, value in answer.headers.items()
                    if name.lower().startswith(prefix)
                }
                etag = answer.headers.get("ETag")
                if not etag:
                    raise ObjectStoreError("the server gives objects no ETag to pin reads to")
                return ObjectFacts(_length(answer), etag, metadata)

        return await self._patience.over(look, f"looking at s3://{bucket}/{key}")

    async def read(self, bucket: str, key: str, etag: str, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on, of the object that had `etag`.

        What came before a request failed is not asked for again.

        Raises:
            ObjectChanged: it is another one now.
            ObjectMissing: it is gone.
        """
        filling = Filling(into)

        async def fetch() -> None:
            first = offset + filling.count
            headers = {"Range": f"bytes={first}-{offset + len(into) - 1}", "If-Match": etag}
            async with self._requests.request("GET", bucket, key, headers=headers) as answer:
                await self._requests.check(answer, bucket, key)
                # Servers exist that ignore If-Match, or Range: what came is compared with both.
                if answer.headers.get("ETag") != etag:
                    raise ObjectChanged(bucket, key)
                said = answer.headers.get("Content-Range", "bytes 0-" if first == 0 else "none")
                # rclone sends a range with status 200, so its header counts alone.
                left = len(into) - filling.count
                if not said.startswith(f"bytes {first}-") or _length(answer) != left:
                    raise Transient(f"the server sent another range: {said[:60]!r}")
                await self._requests.receive(answer, filling, self._bandwidth)

        what = f"reading s3://{bucket}/{key}"
        await self._patience.over(fetch, what, lambda: filling.count)

    # multipart uploads

    async def create_upload(self, bucket: str, key: str, metadata: Mapping[str, str]) -> str:
        """Its id. Tried once: an answer that was lost would leave an upload of unknown id."""
        headers = {"Content-Type": "application/octet-stream"}
        headers |= {f"x-amz-meta-{name}": value for name, value in metadata.items()}
        with self._effects.around("s3 create-upload"):
            body = await self._requests.small("POST", bucket, key, {"uploads": ""}, headers=headers)
        upload_id = parse_document(body).findtext("{*}UploadId") or ""
        if not upload_id:
            raise StoreUnavailable("the server began an upload and did not say which")
        return upload_id

    async def upload_part(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
        data: Buffer,
        at_once: asyncio.Semaphore,
    ) -> str:
        """The part's ETag, which is compared with the MD5 of the bytes where it is one.

        So it is known that the server has what we have, also of those that do not look at the
        signed SHA-256 (rclone does not). Where the server encrypts with keys of its own the ETag
        is something else, and is believed. Source: S3 API reference, common response headers.

        Args:
            at_once: has to have room while it is sent; its sums are made before.

        Raises:
            UploadGone: there is no such upload (any more).
        """
        view = memoryview(data)
        sha256, md5 = await asyncio.to_thread(_sums, view, signed=not self._is_private)
        query = {"partNumber": str(number), "uploadId": upload_id}
        headers = {"Content-Length": str(len(view))}

        async def send() -> str:
            async with self._requests.request(
                "PUT",
                bucket,
                key,
                query,
                headers=headers,
                body=self._pieces(view),
                sha256=sha256,
            ) as answer:
                await self._requests.check(answer, bucket, key)
                etag = answer.headers.get("ETag", "")
                if not etag:
                    raise Transient("the server took a part and gave no ETag")
                if _is_md5(etag, answer) and etag.strip('"') != md5:
                    raise Transient("the server has stored a part that is not what was sent")
                return etag

        async with at_once:
            with self._effects.around("s3 upload-part"):
                what = f"sending part {number} of s3://{bucket}/{key}"
                return await self._patience.over(send, what)

    async def list_parts(self, bucket: str, key: str, upload_id: str) -> list[Part]:
        """Those that the server has, by number.

        Raises:
            UploadGone: there is no such upload.
        """
        parts: list[Part] = []
        marker = "0"
        while True:
            query = {"uploadId": upload_id, "part-number-marker": marker}
            page, following = parse_parts(await self._requests.small("GET", bucket, key, query))
            parts += page
            if following is None or following == marker:
                return sorted(parts, key=lambda part: part.number)
            marker = following

    async def list_uploads(self, bucket: str, key: str | None) -> list[Upload]:
        """The uploads to exactly this key that were begun and not ended; None: to any."""
        query = {"uploads": "", "prefix": key or ""}
        uploads: list[Upload] = []
        while True:
            try:
                body = await self._requests.small("GET", bucket, "", query)
            except UploadGone:  # what rclone says of a bucket that never had one
                return uploads
            page, following = parse_uploads(body)
            uploads += [upload for upload in page if key in (None, upload.key)]
            if following is None or following == query:
                return uploads
            query = {"uploads": "", "prefix": key or "", **following}

    async def complete_upload(
        self, bucket: str, key: str, upload_id: str, etags: Sequence[str]
    ) -> str:
        """Make the parts, from 1 on, the object. It replaces the one before at this moment.

        Returns:
            The object's ETag, without quotes; empty if the server gives none.

        Raises:
            UploadGone: no such upload: it may have been completed by a request whose answer was
                lost.
        """
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        text = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        with self._effects.around("s3 complete-upload"):
            body = await self._requests.small(
                "POST", bucket, key, {"uploadId": upload_id}, body=text
            )
        # S3 may begin its answer with 200 and end it with an error.
        document = parse_document(body)
        if document.tag.rpartition("}")[2] == "Error":
            raise refusal(fault_of(200, body), bucket, key)
        return (document.findtext("{*}ETag") or "").strip('"')

    async def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """End it and free its parts; no-op when there is none.

        A part that was on its way may arrive after the first abort, so it is looked at again.
        """
        for _ in range(5):
            try:
                with self._effects.around("s3 abort-upload"):
                    await self._requests.small("DELETE", bucket, key, {"uploadId": upload_id})
                await self.list_parts(bucket, key, upload_id)
            except UploadGone:
                return
            except BucketUnfit:  # the bucket is gone, and all uploads with it
                return
        raise StoreUnavailable(f"the upload to s3://{bucket}/{key} is still there after its abort")

    async def _pieces(self, view: memoryview) -> AsyncIterator[memoryview]:
        """A part in slices, so that it is copied piece by piece and never as a whole."""
        for at in range(0, len(view), _PIECE_BYTES):
            piece = view[at : at + _PIECE_BYTES]
            await self._bandwidth.take(len(piece))
            yield piece


@asynccontextmanager
async def open_object_store(
    endpoint: Endpoint,
    keys: Keys,
    effects: SideEffects,
    *,
    patience_s: float,
    bandwidth: Bandwidth,
    connections: int,
) -> AsyncIterator[ObjectStore]:
    """The server, for the length of the block.

    Args:
        patience_s: for how long a request that fails for a while is tried again.
        connections: the most at once.
    """
    patience = Patience(patience_s)
    async with open_requests(endpoint, keys, patience, connections=connections) as requests:
        yield ObjectStore(requests, effects, bandwidth)


def _length(answer: aiohttp.ClientResponse) -> int:
    length = answer.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise Transient("the server does not say how long its answer is")
    return int(length)


def _sums(view: memoryview, *, signed: bool) -> tuple[str, str]:
    """What is signed of a part, and its MD5."""
    sha256 = hashlib.sha256(view).hexdigest() if signed else UNSIGNED
    return sha256, hashlib.md5(view, usedforsecurity=False).hexdigest()


def _is_md5(etag: str, answer: aiohttp.ClientResponse) -> bool:
    by_key = answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    by_customer = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    return not by_key and not by_customer and re.fullmatch('"?[0-9a-f]{32}"?', etag) is not None


__all__ = ["Endpoint", "Fault", "Keys", "ObjectFacts", "ObjectStore", "open_object_store"]
