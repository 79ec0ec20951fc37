"""One request of the S3 API: signed, sent, its time bounded, its refusal understood.

`aiohttp` moves the bytes, `minio` signs. Redirects are not followed: a signature holds for one
host. Answers are not trusted: their size is bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from minio.credentials.credentials import Credentials as SignerCredentials
from minio.signer import sign_v4_s3
from yarl import URL

from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.s3_answers import fault_of, refusal
from blockd.transfer.s3_body import Filling, Pace, receive
from blockd.transfer.s3_retry import Patience, TooSlow, Transient

Buffer = bytes | bytearray | memoryview

DEFAULT_REGION: Final = "us-east-1"
#: In place of a body's SHA-256.
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_MOST_ANSWER_BYTES: Final = 4 * 1024**2
_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 30.0
_ANSWER_S: Final = 120.0
#: Slower than any line over which an image could be moved.
_LEAST_BYTES_PER_S: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is: `url` is scheme, host and port."""

    url: str
    region: str = DEFAULT_REGION
    virtual_style: bool = False
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Keys:
    """Who we are to the server. Never printed."""

    access_key: str
    secret_key: str = field(repr=False)


class Requests:
    """To one server. Made by `open_requests`."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, keys: Keys, patience: Patience
    ) -> None:
        self._session, self.endpoint, self.patience = session, endpoint, patience
        self._credentials = SignerCredentials(keys.access_key, keys.secret_key)

    async def small(
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
            async with self.request(
                method, bucket, key, query, headers=headers, body=body
            ) as answer:
                await self.check(answer, bucket, key)
                return await read_short(answer)

        what = f"{method} s3://{bucket}/{key}"
        if "uploads" in query and method == "POST":
            return await self.patience.once(ask, what)
        return await self.patience.over(ask, what)

    @asynccontextmanager
    async def request(
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
        """One request, signed; its answer, whatever its status.

        Args:
            sha256: of the body, hexadecimal; None: it is made here, or the body goes unsigned.
        """
        if sha256 is None:
            sha256 = hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else UNSIGNED
        url = self._url(bucket, key, query or {})
        now = datetime.now(UTC)
        signed = sign_v4_s3(
            method=method,
            url=urlsplit(url),
            region=self.endpoint.region,
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
            # For what aiohttp does not watch: a server that stops taking our bytes. Of a short body
            # all is taken at once, and its answer may be long in coming: S3 joins parts meanwhile.
            asyncio.timeout(
                _ANSWER_S if body and isinstance(body, bytes) else _SILENCE_S
            ) as silence,
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

    async def receive(
        self, answer: aiohttp.ClientResponse, filling: Filling, bandwidth: Bandwidth
    ) -> None:
        """See `s3_body.receive`."""
        await receive(answer, filling, bandwidth, _pace())

    def _url(self, bucket: str, key: str, query: Mapping[str, str]) -> str:
        parts = urlsplit(self.endpoint.url)
        path = quote(key, safe="/~-._")
        if self.endpoint.virtual_style:
            where = f"{parts.scheme}://{bucket}.{parts.netloc}/{path}"
        else:
            where = f"{parts.scheme}://{parts.netloc}/{bucket}" + (f"/{path}" if key else "")
        return where + ("?" + urlencode(query, quote_via=quote, safe="~-._") if query else "")

    async def check(self, answer: aiohttp.ClientResponse, bucket: str, key: str) -> None:
        """Raises what the status means: Transient where another try may help."""
        if answer.status in (200, 204, 206):
            return
        body = b"" if answer.method == "HEAD" else await read_short(answer)
        fault = fault_of(answer.status, body, answer.headers)
        if fault.is_transient:
            raise Transient(f"the server said {fault.status} {fault.code}", fault.retry_after_s)
        raise refusal(fault, bucket, key)


@asynccontextmanager
async def open_requests(
    endpoint: Endpoint, keys: Keys, patience: Patience, *, connections: int
) -> AsyncIterator[Requests]:
    """Connections, at most so many at once, for the length of the block."""
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
        yield Requests(session, endpoint, keys, patience)


def _watched(
    body: bytes | AsyncIterator[Buffer], silence: asyncio.Timeout
) -> bytes | AsyncIterator[Buffer]:
    """The body, each piece of which that is taken puts the deadline off.

    So a server that takes a byte now and then does not hold it: a piece as a whole has to be taken.
    """
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


async def read_short(answer: aiohttp.ClientResponse) -> bytes:
    """The body of an answer, which is short, or cut off.

    Raises:
        TooSlow: it was not whole by the time in which the longest one should have come. No rate
            is asked for before: while an upload is completed S3 sends single spaces.
    """
    body, most_s = b"", _pace().most_s(_MOST_ANSWER_BYTES)
    try:
        async with asyncio.timeout(most_s) as whole:
            while True:
                body += await answer.content.read(_MOST_ANSWER_BYTES - len(body))
                if answer.content.at_eof() or len(body) >= _MOST_ANSWER_BYTES:
                    return body
    except TimeoutError as err:
        if not whole.expired():
            raise
        raise TooSlow(
            f"the server's answer is not whole after {most_s:.0f} s: {len(body)} bytes came"
        ) from err


def _pace() -> Pace:
    return Pace(_SILENCE_S, _LEAST_BYTES_PER_S)
