"""Bodies that are received into memory: whole ones, short ones, long ones, and the next request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from blockd.domain.effects import SideEffects
from blockd.domain.errors import StoreUnavailable
from blockd.domain.units import MIB
from blockd.transfer import s3_body, s3_requests
from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.s3 import Endpoint, Keys, ObjectStore, open_object_store

BODY = os.urandom(3 * MIB + 5)

#: Gets the head, and the bytes that were asked for.
Answer = Callable[[asyncio.StreamWriter, bytes, bytes], Awaitable[None]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedServer:
    """Answers each request as `answers` say, the last one for ever.

    Attributes:
        peers: the client's port of each request: of one connection they are the same.
        firsts: where the range of each begins.
    """

    answers: list[Answer]
    peers: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                asked = re.search(rb"Range: bytes=(\d+)-", request)
                first = 0 if asked is None else int(asked[1])
                self.firsts.append(first)
                self.peers.append(writer.get_extra_info("peername")[1])
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                head = (
                    "HTTP/1.1 206 Partial Content\r\nETag: e\r\n"
                    f"Content-Length: {len(BODY) - first}\r\n"
                    f"Content-Range: bytes {first}-{len(BODY) - 1}/{len(BODY)}\r\n\r\n"
                )
                await answer(writer, head.encode(), BODY[first:])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def store(
        self, bytes_per_s: int = 0, tls: Path | None = None, handle: Handler | None = None
    ) -> AsyncIterator[ObjectStore]:
        """A client of it; `handle` is for connections instead of the answers."""
        context: ssl.SSLContext | None = None
        if tls is not None:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(tls))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
        server = await asyncio.start_server(handle or self.handle, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        async with (
            server,
            open_object_store(
                Endpoint(url, ca_file=None if tls is None else str(tls)),
                Keys("access", "secret"),
                SideEffects(),
                patience_s=1,
                bandwidth=Bandwidth(bytes_per_s),
                connections=2,
            ) as store,
        ):
            yield store


async def read(store: ObjectStore) -> bytearray:
    into = bytearray(len(BODY))
    async with asyncio.timeout(20):
        await store.read("bucket", "key", "e", 0, memoryview(into))
    return into


async def whole(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    writer.write(head + body)
    await writer.drain()


async def in_pieces(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    data = head + body
    for begin, end in ((0, 30), (30, len(head)), (len(head), len(head) + 1), (len(head) + 1, None)):
        writer.write(data[begin:end])
        await writer.drain()
        await asyncio.sleep(0.02)


async def and_closed(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    await whole(writer, head, body)
    writer.close()


async def short(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    writer.write(head + body[:-1])
    await writer.drain()
    writer.close()


async def reset(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    writer.write(head + body[:MIB])
    await writer.drain()
    writer.transport.abort()


async def silent(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    writer.write(head + body[:MIB])
    await writer.drain()
    await asyncio.sleep(30)


async def dripping(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    """A byte now and then, for ever."""
    writer.write(head + body[:100])
    for number in range(100, len(body)):
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(body[number : number + 1])


@pytest.mark.parametrize("answer", [whole, in_pieces])
@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
async def test_body_arrives_and_its_connection_takes_the_next_request(
    tmp_path: Path, answer: Answer, is_tls: bool
) -> None:
    server = ScriptedServer([answer])
    async with server.store(tls=tmp_path / "ca.pem" if is_tls else None) as store:
        for _ in range(4):
            assert await read(store) == BODY
    assert len(server.peers) == 4
    assert len(set(server.peers)) == 1


async def test_connection_that_is_closed_behind_a_body_is_no_error() -> None:
    server = ScriptedServer([and_closed])
    async with server.store() as store:
        for _ in range(3):
            assert await read(store) == BODY


@pytest.mark.parametrize("answer", [short, reset, silent])
async def test_body_that_stops_in_the_middle_is_asked_for_again_on_another_connection(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_requests, "_SILENCE_S", 0.3)
    server = ScriptedServer([answer, whole])
    async with server.store() as store:
        assert await read(store) == BODY
    assert len(set(server.peers)) == 2
    assert len(server.firsts) == 2
    if answer is not reset:  # which throws away what is on its way
        assert server.firsts[1] == (len(BODY) - 1 if answer is short else MIB)


async def test_of_a_body_that_stops_time_and_again_nothing_comes_twice_and_patience_lasts() -> None:
    async def a_little(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        writer.write(head + body[: MIB // 2])
        await writer.drain()
        writer.close()

    server = ScriptedServer([a_little])
    async with server.store() as store:  # four waits would take longer than its patience
        assert await read(store) == BODY
    assert server.firsts == [number * MIB // 2 for number in range(7)]


async def test_body_that_always_stops_is_an_error() -> None:
    async with ScriptedServer([short]).store() as store:
        with pytest.raises(StoreUnavailable, match="stopped in the middle of a range"):
            await read(store)


@pytest.mark.parametrize("bytes_per_s", [0, 10**9], ids=["unlimited", "limited"])
async def test_body_that_drips_is_asked_for_again_and_an_error_at_the_last(
    bytes_per_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_requests, "_SILENCE_S", 0.3)
    server = ScriptedServer([dripping, whole])
    async with server.store(bytes_per_s) as store:
        assert await read(store) == BODY
    assert len(set(server.peers)) == 2
    async with ScriptedServer([dripping]).store(bytes_per_s) as store:
        with pytest.raises(StoreUnavailable, match=r"too slowly: \d+ bytes came in"):
            await read(store)


async def test_limit_that_is_below_the_least_rate_does_not_fail_a_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_requests, "_SILENCE_S", 0.2)
    monkeypatch.setattr(s3_requests, "_LEAST_BYTES_PER_S", 100 * len(BODY))
    monkeypatch.setattr(s3_body, "_MOST_AT_ONCE_BYTES", 64 * 1024)
    server = ScriptedServer([whole])
    async with server.store(bytes_per_s=len(BODY)) as store:
        assert await read(store) == BODY
    assert len(server.peers) == 1


async def test_short_answer_that_drips_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "_LEAST_BYTES_PER_S", 20 * MIB)
    monkeypatch.setattr(s3_requests, "_SILENCE_S", 0.3)
    async with ScriptedServer([dripping]).store() as store:
        with pytest.raises(StoreUnavailable, match=r"not whole after .*: \d+ bytes came"):
            async with asyncio.timeout(20):
                await store.check_bucket("bucket")


async def test_body_that_is_taken_in_drips_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "_SILENCE_S", 0.3)

    async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while await reader.read(10):
                await asyncio.sleep(0.05)

    async with ScriptedServer([]).store(handle=sip) as store:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            async with asyncio.timeout(20):
                await store.upload_part(
                    *("bucket", "key", "id", 1), bytes(32 * MIB), asyncio.Semaphore()
                )


async def test_bytes_behind_a_body_do_not_reach_what_comes_next() -> None:
    async def long(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        writer.write(head + body + b"x" * 100)
        await writer.drain()

    server = ScriptedServer([long, whole])
    async with server.store() as store:
        assert await read(store) == BODY
        assert await read(store) == BODY
    assert set(server.firsts) == {0}


async def test_reading_that_is_cancelled_closes_its_connection() -> None:
    begun = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        writer.write(head + body[:MIB])
        await writer.drain()
        begun.set()
        await asyncio.sleep(30)

    server = ScriptedServer([endless, whole])
    async with server.store() as store:
        reading = asyncio.create_task(read(store))
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await read(store) == BODY
    assert len(set(server.peers)) == 2


async def test_body_comes_no_faster_than_it_may() -> None:
    server = ScriptedServer([whole])
    loop = asyncio.get_running_loop()
    async with server.store(bytes_per_s=2 * len(BODY)) as store:
        began = loop.time()
        for _ in range(2):
            assert await read(store) == BODY
        assert loop.time() - began >= 0.7
