"""The server side of NBD on one connected socket: how qemu-img sees what blockd reads and writes.

Fixed newstyle handshake, simple replies. The client is not trusted: it may have been fed a hostile
image, so every length and offset is checked, and nothing it sends makes us hold more than one
request's worth of it.

Source: NetworkBlockDevice/nbd, doc/proto.md.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

_MAGIC: Final = b"NBDMAGIC"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_REPLY_MAGIC: Final = 0x67446698

_OPTION: Final = struct.Struct(">8sII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")

_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_INFO, _OPT_GO = 1, 2, 6, 7
_REP_ACK, _REP_INFO, _REP_ERR_UNSUP = 1, 3, 0x80000001
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_FUA, _SEND_TRIM, _SEND_ZEROES = 1, 2, 4, 8, 32, 64
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6

#: Least, preferred and largest: qemu-img copies in pieces of 2 MiB, and splits what is larger.
_BLOCK_SIZES: Final = (1, 65536, 2 * 1024**2)
MOST_BYTES: Final = _BLOCK_SIZES[2]
_MOST_OPTION_BYTES: Final = 4096
_HANDSHAKE_S: Final = 30.0


class NbdFault(Exception):
    """The client does not speak NBD as it should."""


class Export(Protocol):
    """What is served. An exception of any method is an I/O error for the client."""

    size_bytes: int
    read_only: bool

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes of a range, in pieces. Several reads may be under way at once."""

    async def place(self, offset: int, length: int) -> Sequence[memoryview]:
        """Where the payload of a write goes; may wait until there is room. One at a time."""

    async def written(self, offset: int, length: int) -> None:
        """It is there."""

    async def zero(self, offset: int, length: int) -> None:
        """A range is to read as zeros."""

    async def flush(self) -> None:
        """What was written is to be durable."""


@dataclass(slots=True)
class Asked:
    """How many requests of a client the export has not answered yet."""

    count: int = 0


class ReadOnlyExport:
    """What an `Export` that only reads has in common with others."""

    read_only = True

    async def place(self, offset: int, length: int) -> Sequence[memoryview]:
        """Never asked: the client is told that nothing can be written."""
        raise NbdFault(f"a write of {length} bytes at {offset} to what can only be read")

    async def written(self, offset: int, length: int) -> None:
        """Never asked."""

    async def zero(self, offset: int, length: int) -> None:
        """Never asked."""

    async def flush(self) -> None:
        """There is nothing to flush."""


async def serve(
    connection: socket.socket, export: Export, asked: Asked, *, reads_in_flight: int = 16
) -> None:
    """Answer the client until it disconnects, and close the connection; `asked` is kept true.

    Raises:
        NbdFault: it broke the protocol.
        Exception: whatever the export raised first; the client was told of an I/O error.
    """
    with connection:
        connection.setblocking(False)
        try:
            await _Session(connection, export, asked, reads_in_flight).run()
        except ConnectionError as err:  # it was killed
            raise NbdFault("the client hung up in the middle") from err


class _Session:
    def __init__(
        self, connection: socket.socket, export: Export, asked: Asked, reads_in_flight: int
    ) -> None:
        self._connection, self._export, self._asked = connection, export, asked
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._reads = asyncio.Semaphore(reads_in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._header = memoryview(bytearray(_REQUEST.size))

    async def run(self) -> None:
        async with asyncio.timeout(_HANDSHAKE_S):
            goes_on = await self._handshake()
        if goes_on:
            try:
                await self._requests()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    # handshake

    async def _handshake(self) -> bool:
        greeting = _MAGIC + _OPTION_MAGIC + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES)
        await self._loop.sock_sendall(self._connection, greeting)
        (flags,) = struct.unpack(">I", await self._exactly(4))
        while True:
            magic, option, length = _OPTION.unpack(await self._exactly(_OPTION.size))
            if magic != _OPTION_MAGIC or length > _MOST_OPTION_BYTES:
                raise NbdFault("the client's handshake is none")
            await self._exactly(length)  # the export's name: there is one export
            match option:
                case 1:  # _OPT_EXPORT_NAME: the old way to begin
                    answer = struct.pack(">QH", self._export.size_bytes, self._flags())
                    if not flags & _NO_ZEROES:
                        answer += bytes(124)
                    await self._loop.sock_sendall(self._connection, answer)
                    return True
                case 2:  # _OPT_ABORT
                    await self._option_reply(option, _REP_ACK)
                    return False
                case 6 | 7:  # _OPT_INFO, _OPT_GO
                    about = struct.pack(
                        ">HQH", _INFO_EXPORT, self._export.size_bytes, self._flags()
                    )
                    await self._option_reply(option, _REP_INFO, about)
                    sizes = struct.pack(">HIII", _INFO_BLOCK_SIZE, *_BLOCK_SIZES)
                    await self._option_reply(option, _REP_INFO, sizes)
                    await self._option_reply(option, _REP_ACK)
                    if option == _OPT_GO:
                        return True
                case _:
                    await self._option_reply(option, _REP_ERR_UNSUP)

    async def _option_reply(self, option: int, kind: int, data: bytes = b"") -> None:
        head = _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data))
        await self._loop.sock_sendall(self._connection, head + data)

    def _flags(self) -> int:
        flags = _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA | _SEND_TRIM | _SEND_ZEROES
        return flags | (_READ_ONLY if self._export.read_only else 0)

    # requests

    async def _requests(self) -> None:
        while True:
            if not await self._receive(self._header, may_end=True):
                return
            magic, _, command, cookie, offset, length = _REQUEST.unpack(self._header)
            if magic != _REQUEST_MAGIC:
                raise NbdFault("the client sent no request where one is due")
            if command == _DISCONNECT:
                return
            await self._request(command, cookie, offset, length)

    async def _request(self, command: int, cookie: int, offset: int, length: int) -> None:
        moves_bytes = command in (_READ, _WRITE)
        if moves_bytes and length > MOST_BYTES:
            raise NbdFault(f"the client asks for {length} bytes at once")
        error = self._fault(command, offset, length)
        if error:
            if command == _WRITE:
                await self._exactly(length)
            await self._reply(cookie, error)
            return
        match command:
            case 0:  # _READ
                await self._reads.acquire()
                task = asyncio.create_task(self._read(cookie, offset, length))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case 1:  # _WRITE
                await self._reply(cookie, await self._write(offset, length))
            case 6:  # _WRITE_ZEROES
                error, _ = await self._ask(self._export.zero(offset, length))
                await self._reply(cookie, error)
            case 3:  # _FLUSH
                error, _ = await self._ask(self._export.flush())
                await self._reply(cookie, error)
            case _:  # _TRIM: advice, which nobody has to take
                await self._reply(cookie, 0)

    def _fault(self, command: int, offset: int, length: int) -> int:
        changes = command in (_WRITE, _WRITE_ZEROES, _TRIM)
        if changes and self._export.read_only:
            return errno.EPERM
        if command not in (_READ, _WRITE, _FLUSH, _TRIM, _WRITE_ZEROES):
            return errno.EINVAL
        if command != _FLUSH and offset + length > self._export.size_bytes:
            return errno.ENOSPC if changes else errno.EINVAL
        return 0

    async def _read(self, cookie: int, offset: int, length: int) -> None:
        try:
            error, pieces = await self._ask(self._export.read(offset, length))
            async with self._sending:
                head = _REPLY.pack(_REPLY_MAGIC, error, cookie)
                await self._loop.sock_sendall(self._connection, head)
                for piece in pieces or ():
                    await self._loop.sock_sendall(self._connection, piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away before its answer; the other direction tells
        finally:
            self._reads.release()

    async def _write(self, offset: int, length: int) -> int:
        error, places = await self._ask(self._export.place(offset, length))
        if places is None:
            await self._exactly(length)
            return error
        for place in places:
            await self._receive(place)
        error, _ = await self._ask(self._export.written(offset, length))
        return error

    async def _ask(self, asking: Awaitable[T]) -> tuple[int, T | None]:
        """What the export answers, and the errno of its failure, the first of which is kept."""
        self._asked.count += 1
        try:
            return 0, await asking
        except Exception as err:  # noqa: BLE001 - raised again when the connection ends
            if self._failure is None:
                self._failure = err
            return errno.EIO, None
        finally:
            self._asked.count -= 1

    async def _reply(self, cookie: int, error: int) -> None:
        async with self._sending:
            head = _REPLY.pack(_REPLY_MAGIC, error, cookie)
            await self._loop.sock_sendall(self._connection, head)

    # bytes

    async def _exactly(self, length: int) -> bytes:
        """Short answers of the handshake, and what is to be thrown away."""
        found = bytearray(length)
        await self._receive(memoryview(found))
        return bytes(found)

    async def _receive(self, into: memoryview, *, may_end: bool = False) -> bool:
        """Fill a buffer; False if the connection ended before its first byte and may."""
        got = 0
        while got < len(into):
            count = await self._loop.sock_recv_into(self._connection, into[got:])
            if count == 0:
                if may_end and got == 0:
                    return False
                raise NbdFault("the client hung up in the middle")
            got += count
        return True
