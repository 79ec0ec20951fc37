"""The body of an answer, received where it shall lie.

aiohttp hands a body out in pieces, each of which was copied three times: for an import that is more
than all else that blockd does. Here the kernel copies into the caller's memory: once the header is
read, the connection is ours until the body's end, and then aiohttp's again, for the next request.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

import aiohttp

from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.s3_retry import Transient

#: What is taken from a connection at once: others wait as long.
_MOST_AT_ONCE_BYTES: Final = 1024**2


async def receive(
    answer: aiohttp.ClientResponse, into: memoryview, bandwidth: Bandwidth, *, silence_s: float
) -> None:
    """Fill `into` with the body, which has a `Content-Length` of that many bytes.

    Raises:
        Transient: it is shorter, or longer.
        TimeoutError: nothing came for `silence_s`, or up to twice as long.
    """
    got = 0
    while piece := answer.content.read_nowait():  # what came with the header
        if got + len(piece) > len(into):
            raise _too_long()
        into[got : got + len(piece)] = piece
        got += len(piece)
    # No pause from here to `set_protocol`: aiohttp would receive more meanwhile.
    connection = answer.connection
    if connection is None or connection.transport is None or connection.protocol is None:
        if got < len(into):
            raise _too_short()
        await bandwidth.take(got)
        return
    transport, theirs = connection.transport, connection.protocol
    ours = _Receiver(into, got, theirs)
    transport.set_protocol(ours)
    try:
        while not ours.is_full:
            count = await ours.more(silence_s, is_all=not bandwidth.is_limited)
            if bandwidth.is_limited:
                transport.pause_reading()
                await bandwidth.take(count)
                transport.resume_reading()
    except BaseException:
        transport.abort()
        raise
    transport.set_protocol(theirs)
    answer.content.feed_eof()  # which gives the connection back


class _Receiver(asyncio.BufferedProtocol):
    """Receives into memory; what befalls the connection, `theirs` is told, too."""

    def __init__(self, into: memoryview, got: int, theirs: asyncio.BaseProtocol) -> None:
        """`got`: so many bytes are in `into` already."""
        self._into, self._theirs = into, theirs
        self._got, self._told = got, 0
        self._is_enough = 0
        self._failure: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether all is there."""
        return self._failure is None and self._told == len(self._into)

    async def more(self, silence_s: float, *, is_all: bool) -> int:
        """Wait until more is there, or all; how many bytes. Raises what ended it."""
        self._is_enough = len(self._into) if is_all else self._told + 1
        while self._got < self._is_enough and self._failure is None:
            # Not woken by each piece: they are hundreds in a second, and nothing is to be done.
            had, self._waiting = self._got, asyncio.get_running_loop().create_future()
            await asyncio.wait([self._waiting], timeout=silence_s)
            if self._got == had and self._failure is None:
                raise TimeoutError
        if self._failure is not None:
            raise self._failure
        count, self._told = self._got - self._told, self._got
        return count

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Where the next bytes go."""
        if self._got >= len(self._into):
            return memoryview(bytearray(1))  # and none shall come
        return self._into[self._got : self._got + _MOST_AT_ONCE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        if self._got >= len(self._into):
            self._failure = _too_long()
        self._got += nbytes
        if self._got >= self._is_enough:
            self._wake()

    def eof_received(self) -> None:
        """The server has no more to say."""
        self._fail(_too_short())

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._fail(exc or _too_short())
        cast("asyncio.Protocol", self._theirs).connection_lost(exc)

    def pause_writing(self) -> None:
        """A request was written before its answer came."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def _fail(self, failure: Exception) -> None:
        if self._got < len(self._into):
            self._failure = self._failure or failure
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def _too_short() -> Transient:
    return Transient("the server stopped in the middle of a range")


def _too_long() -> Transient:
    return Transient("the server sent more than the range")
