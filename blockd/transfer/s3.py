"""Object storage: each request of the S3 API that blockd needs, signed, bounded and tried again.

`aiohttp` moves the bytes, `minio` signs. Redirects are not followed: a signature holds for one
host. Answers are not trusted: their size is bounded, and their length and ETag are compared.

Source: Amazon S3 API reference; MinIO and rclone where they differ, said at the place.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlencode, urlsplit
from xml.sax.saxutils import escape

import aiohttp
from minio.credentials.credentials import Credentials as SignerCredentials
from minio.signer import sign_v4_s3
from yarl import URL

from blockd.domain.effects import SideEffects
from blockd.domain.errors import (
    BucketUnfit,
    ObjectChanged,
    ObjectMissing,
    ObjectStoreError,
    StoreUnavailable,
    UploadGone,
)
from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.s3_answers import (
    Fault,
    Part,
    Upload,
    fault_of,
    parse_document,
    parse_parts,
    parse_uploads,
    refusal,
)
from blockd.transfer.s3_retry import Patience, Transient

Buffer = bytes | bytearray | memoryview

_DEFAULT_REGION: Final = "us-east-1"
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_MOST_ANSWER_BYTES: Final = 4 * 1024**2
_PIECE_BYTES: Final = 256 * 1024
_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 30.0
_ANSWER_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is: `url` is scheme, host and port."""

    url: str
    region: str = _DEFAULT_REGION
    virtual_style: bool = False
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Keys:
    """Who we are to the server. Never printed."""

    access_key: str
    secret_key: str = field(repr=False)


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

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        keys: Keys,
        effects: SideEffects,
        patience: Patience,
        bandwidth: Bandwidth,
    ) -> None:
        self._session, self._endpoint, self._effects = session, endpoint, effects
        self._credentials = SignerCredentials(keys.access_key, keys.secret_key)
        self._patience, self._bandwidth = patience, bandwidth
        self._is_private = endpoint.url.startswith("https:")

    # buckets and objects

    async def check_bucket(self, bucket: str) -> None:
        """See that it exists and lies in our region."""
        body = await self._small("GET", bucket, "", {"location": ""})
        document = parse_document(body)
        region = (document.text or "").strip() or _DEFAULT_REGION
        if region != self._endpoint.region:
            raise BucketUnfit(
                f"bucket {bucket} lies in region {region}, and blockd is set up for "
                f"{self._endpoint.region}: choose another bucket"
            )

    async def head(self, bucket: str, key: str) -> ObjectFacts:
        """Raises ObjectMissing."""

        async def look() -> ObjectFacts:
            async with self._request("HEAD", bucket, key) as answer:
                if answer.status == 404:
                    raise ObjectMissing(bucket, key)
                await self._check(answer, bucket, key)
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

        Raises:
            ObjectChanged: it is another one now.
            ObjectMissing: it is gone.
        """
        end = offset + len(into)
        headers = {"Range": f"bytes={offset}-{end - 1}", "If-Match": etag}
        got = 0

        async def fetch() -> None:
            nonlocal got
            got = 0
            async with self._request("GET", bucket, key, headers=headers) as answer:
                await self._check(answer, bucket, key)
                # Servers exist that ignore If-Match, or Range: what came is compared with both.
                if answer.headers.get("ETag") != etag:
                    raise ObjectChanged(bucket, key)
                said = answer.headers.get("Content-Range", "bytes 0-" if offset == 0 else "none")
                # rclone sends a range with status 200, so its header counts alone.
                if not said.startswith(f"bytes {offset}-") or _length(answer) != len(into):
                    raise Transient(f"the server sent another range: {said[:60]!r}")
                async for piece in answer.content.iter_any():
                    if got + len(piece) > len(into):
                        raise Transient("the server sent more than the range")
                    into[got : got + len(piece)] = piece
                    got += len(piece)
                    await self._bandwidth.take(len(piece))
                if got < len(into):
                    raise Transient("the server stopped in the middle of a range")

        await self._patience.over(fetch, f"reading s3://{bucket}/{key}")

    # multipart uploads

    async def create_upload(self, bucket: str, key: str, metadata: Mapping[str, str]) -> str:
        """Its id. Tried once: an answer that was lost would leave an upload of unknown id."""
        headers = {"Content-Type": "application/octet-stream"}
        headers |= {f"x-amz-meta-{name}": value for name, value in metadata.items()}
        with self._effects.around("s3 create-upload"):
            body = await self._small("POST", bucket, key, {"uploads": ""}, headers=headers)
        upload_id = parse_document(body).findtext("{*}UploadId") or ""
        if not upload_id:
            raise StoreUnavailable("the server began an upload and did not say which")
        return upload_id

    async def upload_part(
        self, bucket: str, key: str, upload_id: str, number: int, data: Buffer
    ) -> str:
        """The part's ETag, which is compared with the MD5 of the bytes where it is one.

        So it is known that the server has what we have, also of those that do not look at the
        signed SHA-256 (rclone does not). Where the server encrypts with keys of its own the ETag
        is something else, and is believed. Source: S3 API reference, common response headers.

        Raises:
            UploadGone: there is no such upload (any more).
        """
        view = memoryview(data)
        sha256, md5 = await asyncio.to_thread(_sums, view, signed=not self._is_private)
        query = {"partNumber": str(number), "uploadId": upload_id}
        headers = {"Content-Length": str(len(view))}

        async def send() -> str:
            async with self._request(
                "PUT",
                bucket,
                key,
                query,
                headers=headers,
                body=self._pieces(view),
                sha256=sha256,
            ) as answer:
                await self._check(answer, bucket, key)
                etag = answer.headers.get("ETag", "")
                if not etag:
                    raise Transient("the server took a part and gave no ETag")
                if _is_md5(etag, answer) and etag.strip('"') != md5:
                    raise Transient("the server has stored a part that is not what was sent")
                return etag

        with self._effects.around("s3 upload-part"):
            return await self._patience.over(send, f"sending part {number} of s3://{bucket}/{key}")

    async def list_parts(self, bucket: str, key: str, upload_id: str) -> list[Part]:
        """Those that the server has, by number.

        Raises:
            UploadGone: there is no such upload.
        """
        parts: list[Part] = []
        marker = "0"
        while True:
            query = {"uploadId": upload_id, "part-number-marker": marker}
            page, following = parse_parts(await self._small("GET", bucket, key, query))
            parts += page
            if following is None or following == marker:
                return sorted(parts, key=lambda part: part.number)
            marker = following

    async def list_uploads(self, bucket: str, key: str) -> list[Upload]:
        """The uploads to exactly this key that were begun and not ended."""
        query = {"uploads": "", "prefix": key}
        uploads: list[Upload] = []
        while True:
            try:
                body = await self._small("GET", bucket, "", query)
            except UploadGone:  # what rclone says of a bucket that never had one
                return uploads
            page, following = parse_uploads(body)
            uploads += [upload for upload in page if upload.key == key]
            if following is None or following == query:
                return uploads
            query = {"uploads": "", "prefix": key, **following}

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
            body = await self._small("POST", bucket, key, {"uploadId": upload_id}, body=text)
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
                    await self._small("DELETE", bucket, key, {"uploadId": upload_id})
                await self.list_parts(bucket, key, upload_id)
            except UploadGone:
                return
            except BucketUnfit:  # the bucket is gone, and all uploads with it
                return
        raise StoreUnavailable(f"the upload to s3://{bucket}/{key} is still there after its abort")

    # requests

    async def _small(
        self,
        method: str,
        bucket: str,
        key: str,
        query: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> bytes:
        """A request whose body and answer are short; the answer's body."""

        async def ask() -> bytes:
            async with self._request(
                method, bucket, key, query, headers=headers, body=body
            ) as answer:
                await self._check(answer, bucket, key)
                return await _short(answer)

        what = f"{method} s3://{bucket}/{key}"
        if "uploads" in query and method == "POST":
            return await self._patience.once(ask, what)
        return await self._patience.over(ask, what)

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        bucket: str,
        key: str,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[Buffer] = b"",
        sha256: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if sha256 is None:
            sha256 = hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else _UNSIGNED
        url = self._url(bucket, key, query or {})
        now = datetime.now(UTC)
        signed = sign_v4_s3(
            method=method,
            url=urlsplit(url),
            region=self._endpoint.region,
            headers={
                **(headers or {}),
                "Host": urlsplit(url).netloc,
                "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
                "x-amz-content-sha256": sha256,
            },
            credentials=self._credentials,
            content_sha256=sha256,
            date=now,
        )
        async with (
            # For what aiohttp does not watch: a server that stops taking our bytes.
            asyncio.timeout(_SILENCE_S) as silence,
            self._session.request(
                method,
                URL(url, encoded=True),  # the signature is over these very characters
                headers={name: str(value) for name, value in signed.items()},
                data=_watched(body, silence) if body else None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=_CONNECT_S,
                    sock_read=_ANSWER_S if body else _SILENCE_S,
                ),
            ) as answer,
        ):
            silence.reschedule(None)  # from here on aiohttp watches
            yield answer

    def _url(self, bucket: str, key: str, query: Mapping[str, str]) -> str:
        parts = urlsplit(self._endpoint.url)
        path = quote(key, safe="/~-._")
        if self._endpoint.virtual_style:
            where = f"{parts.scheme}://{bucket}.{parts.netloc}/{path}"
        else:
            where = f"{parts.scheme}://{parts.netloc}/{bucket}" + (f"/{path}" if key else "")
        return where + ("?" + urlencode(query, quote_via=quote, safe="~-._") if query else "")

    async def _pieces(self, view: memoryview) -> AsyncIterator[memoryview]:
        """A part in slices, so that it is copied piece by piece and never as a whole."""
        for at in range(0, len(view), _PIECE_BYTES):
            piece = view[at : at + _PIECE_BYTES]
            await self._bandwidth.take(len(piece))
            yield piece

    async def _check(self, answer: aiohttp.ClientResponse, bucket: str, key: str) -> None:
        """Raises what the status means: Transient where another try may help."""
        if answer.status in (200, 204, 206):
            return
        body = b"" if answer.method == "HEAD" else await _short(answer)
        fault = fault_of(answer.status, body, answer.headers)
        if fault.is_transient:
            raise Transient(f"the server said {fault.status} {fault.code}", fault.retry_after_s)
        raise refusal(fault, bucket, key)


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
    import ssl  # noqa: PLC0415 - 3 MiB, for those who use TLS

    tls: ssl.SSLContext | bool = True
    if endpoint.url.startswith("https:"):
        tls = ssl.create_default_context(cafile=endpoint.ca_file)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        auto_decompress=False,
        read_bufsize=2**20,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    ) as session:
        yield ObjectStore(session, endpoint, keys, effects, Patience(patience_s), bandwidth)


def _watched(
    body: bytes | AsyncIterator[Buffer], silence: asyncio.Timeout
) -> bytes | AsyncIterator[Buffer]:
    """The body, each piece of which that is taken puts the deadline off."""
    if isinstance(body, bytes):
        return body

    async def pieces() -> AsyncIterator[Buffer]:
        loop = asyncio.get_running_loop()
        async for piece in body:
            silence.reschedule(loop.time() + _SILENCE_S)
            yield piece
            silence.reschedule(None)  # while the next one waits for its share of the bandwidth
        silence.reschedule(loop.time() + _ANSWER_S)

    return pieces()


def _length(answer: aiohttp.ClientResponse) -> int:
    length = answer.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise Transient("the server does not say how long its answer is")
    return int(length)


async def _short(answer: aiohttp.ClientResponse) -> bytes:
    body = await answer.content.read(_MOST_ANSWER_BYTES)
    while not answer.content.at_eof() and len(body) < _MOST_ANSWER_BYTES:
        body += await answer.content.read(_MOST_ANSWER_BYTES - len(body))
    return body


def _sums(view: memoryview, *, signed: bool) -> tuple[str, str]:
    """What is signed of a part, and its MD5."""
    sha256 = hashlib.sha256(view).hexdigest() if signed else _UNSIGNED
    return sha256, hashlib.md5(view, usedforsecurity=False).hexdigest()


def _is_md5(etag: str, answer: aiohttp.ClientResponse) -> bool:
    by_key = answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    by_customer = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    return not by_key and not by_customer and re.fullmatch('"?[0-9a-f]{32}"?', etag) is not None


__all__ = ["Endpoint", "Fault", "Keys", "ObjectFacts", "ObjectStore", "open_object_store"]
