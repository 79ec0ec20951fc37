"""An NBD export at work: a socket pair of which qemu-img inherits one end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from blockd.domain.errors import StorageError
from blockd.transfer.nbd import Asked, Export, NbdFault, serve

_SOCKET_BYTES: Final = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Link:
    """The client's end of a connection to an export, and what it waits for there."""

    end: socket.socket
    asked: Asked


@asynccontextmanager
async def served(export: Export) -> AsyncIterator[Link]:
    """A client's link to an export.

    Raises:
        Exception: what the export raised first: it is the cause of qemu-img's own complaint.
    """
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):  # as much as the host allows (net.core.wmem_max): fewer wake-ups
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    asked = Asked()
    serving = asyncio.create_task(serve(ours, export, asked), name=f"nbd {type(export).__name__}")
    try:
        yield Link(theirs, asked)
    except StorageError as err:
        theirs.close()
        await asyncio.wait([serving], timeout=5)
        cause = serving.exception() if serving.done() and not serving.cancelled() else None
        if cause is None or isinstance(cause, NbdFault):  # qemu-img itself knows better
            raise
        raise cause from err
    else:
        theirs.close()
        await serving
    finally:
        theirs.close()
        await ended(serving)


async def ended(task: asyncio.Task[object] | asyncio.Task[None] | asyncio.Task[str]) -> None:
    """Cancel a task and wait for its end, whatever it is."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
