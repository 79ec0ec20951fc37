"""The body of an answer, received where it shall lie.

aiohttp hands a body out in pieces, each of which was copied three times: for an import that is more
than all else that blockd does. Here the kernel copies into the caller's memory: once the header is
read, the connection is ours until the body's end, and then aiohttp's again, for the next request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, cast

import aiohttp

from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.s3_retry import Transient

#: What is taken from a connection at once: others wait as long.
_MOST_AT_ONCE_BYTES: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Pace:
    """What a body may take: `silence_s` without a byte, and as much besides its bytes at a rate."""

    silence_s: float
    least_bytes_per_s: int

    def most_s(self, count_bytes: int) -> float:
        """How long so many bytes may take."""
        return self.silence_s + count_bytes / self.least_bytes_per_s


@dataclass(slots=True)
class Filling:
    """Memory that is filled from its beginning on, by one answer or by several.

    Attributes:
        count: so many bytes are there.
    """

    into: memoryview
    count: int = 0


async def receive(
    answer: aiohttp.ClientResponse, filling: Filling, bandwidth: Bandwidth, pace: Pace
) -> None:
    """Fill the rest with the body, which has a `Content-Length` of that many bytes.

    Time that is spent waiting for `bandwidth` does not count. What came of a body that fails is
    kept, and counted.

    Raises:
        Transient: it is shorter, or longer, or has come more slowly than `pace` for longer than
            its silence.
        TimeoutError: nothing came for its silence, or up to twice as long.
    """
    had, into = filling.count, filling.into
    while piece := answer.content.read_nowait():  # what came with the header
        if filling.count + len(piece) > len(into):
            filling.count = had
            raise _TooLong
        into[filling.count : filling.count + len(piece)] = piece
        filling.count += len(piece)
    # No pause from here to `set_protocol`: aiohttp would receive more meanwhile.
    connection = answer.connection
    if connection is None or connection.transport is None or connection.protocol is None:
        if filling.count < len(into):
            raise _too_short()
        await bandwidth.take(filling.count - had)
        return
    transport, theirs = connection.transport, connection.protocol
    ours = _Receiver(filling, had, theirs)
    transport.set_protocol(ours)
    try:
        while not ours.is_full:
            count = await ours.more(pace, is_all=not bandwidth.is_limited)
            if bandwidth.is_limited:
                transport.pause_reading()
                await bandwidth.take(count)
                transport.resume_reading()
    except BaseException as err:
        transport.abort()
        if isinstance(err, _TooLong):
            filling.count = had  # it was not what was asked for
        raise
    transport.set_protocol(theirs)
    answer.content.feed_eof()  # which gives the connection back


class _TooLong(Transient):
    def __init__(self) -> None:
        super().__init__("the server sent more than the range")


class _Receiver(asyncio.BufferedProtocol):
    """Receives into memory; what befalls the connection, `theirs` is told, too."""

    def __init__(self, filling: Filling, told: int, theirs: asyncio.BaseProtocol) -> None:
        """`told`: so many bytes were told of before."""
        self._filling, self._into, self._theirs = filling, filling.into, theirs
        self._began = self._told = told
        self._is_enough, self._waited_s = 0, 0.0
        self._failure: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether all is there."""
        return self._failure is None and self._told == len(self._into)

    async def more(self, pace: Pace, *, is_all: bool) -> int:
        """Wait until more is there, or all; how many bytes. Raises what ended it."""
        self._is_enough = len(self._into) if is_all else self._told + 1
        loop = asyncio.get_running_loop()
        while self._got < self._is_enough and self._failure is None:
            # Not woken by each piece: they are hundreds in a second, and nothing is to be done.
            had, self._waiting = self._got, loop.create_future()
            began_s = loop.time()
            await asyncio.wait([self._waiting], timeout=pace.silence_s)
            self._waited_s += loop.time() - began_s
            if self._got == had and self._failure is None:
                raise TimeoutError
            # Of a body that drips there is always something new.
            if self._got < len(self._into) and self._waited_s > pace.most_s(self._came):
                raise self._failure or _too_slow(self._came, self._waited_s)
        if self._failure is not None:
            raise self._failure
        count, self._told = self._got - self._told, self._got
        return count

    @property
    def _got(self) -> int:
        return self._filling.count

    @property
    def _came(self) -> int:
        return self._filling.count - self._began

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Where the next bytes go."""
        if self._got >= len(self._into):
            return memoryview(bytearray(1))  # and none shall come
        return self._into[self._got : self._got + _MOST_AT_ONCE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        if self._got >= len(self._into):
            self._failure = _TooLong()
        else:
            self._filling.count += nbytes
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


def _too_slow(count_bytes: int, waited_s: float) -> Transient:
    return Transient(
        f"the server sends a range too slowly: {count_bytes} bytes came in {waited_s:.0f} s"
    )


def _too_short() -> Transient:
    return Transient("the server stopped in the middle of a range")
