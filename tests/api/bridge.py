"""A loopback TCP port that leads to a Unix socket: the official clients know no other address."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path


@asynccontextmanager
async def bridge(socket: Path) -> AsyncIterator[str]:
    """Give the address (`http://127.0.0.1:PORT`) at which `socket` is reached meanwhile."""
    connections: set[asyncio.Task[None]] = set()

    def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_join(reader, writer, socket))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        left = list(connections)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: Path) -> None:
    writers = [writer]
    try:
        far_reader, far_writer = await asyncio.open_unix_connection(os.fspath(socket))
        writers.append(far_writer)
        await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))
    finally:
        for end in writers:
            end.close()
        for end in writers:
            with suppress(ConnectionError):
                await end.wait_closed()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
