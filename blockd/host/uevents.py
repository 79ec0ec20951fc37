"""Kernel uevents through pyroute2: the only place with netlink."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from blockd.domain.errors import StorageError

log = structlog.get_logger()

NODE_DEADLINE_S = 10.0
_RETRY_S = 60.0
_KERNEL = 1  # MONITOR_GROUP_KERNEL; that of udevd is 2


@asynccontextmanager
async def block_events(happened: Callable[[bool], None]) -> AsyncIterator[None]:
    """Call `happened` after each uevent of a block device, for the length of the block.

    With True when events may have been missed: the socket's buffer overran, or there was none for
    a while. Without netlink (a container, say) there are no events, and the log says so.
    """
    listening = asyncio.create_task(_listen(happened), name="uevents")
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _listen(happened: Callable[[bool], None]) -> None:
    # Here and in a thread: it brings all of pyroute2, a third of the daemon's start.
    make, missed = await asyncio.to_thread(_socket_class), False
    while True:
        try:
            async with make() as events:
                await events.bind(_KERNEL)
                happened(missed)
                missed = True  # whatever happens until the next socket listens
                while True:
                    async for event in events.get():
                        # pyroute2 makes an event of each error of the socket, ENOBUFS above all,
                        # and it has none of an event's fields.
                        if event.get("ACTION") is None:
                            log.warning("kernel events were missed")
                            happened(True)
                        elif event.get("SUBSYSTEM") == "block":
                            happened(False)
        except OSError as err:
            log.warning("no kernel events for a while", reason=str(err))
        except Exception:
            log.exception("no kernel events for a while")  # whatever it was, a new socket may do
        await asyncio.sleep(_RETRY_S)


def _socket_class() -> type[Any]:
    from pyroute2.netlink.uevent import AsyncUeventSocket  # noqa: PLC0415

    return AsyncUeventSocket  # type: ignore[no-any-return]


async def wait_for_node(node: Path, timeout_s: float = NODE_DEADLINE_S) -> None:
    """Wait until a device node is there.

    devtmpfs makes nodes before the kernel announces them, so there is mostly nothing to wait for;
    otherwise each uevent is an occasion to look again.

    Raises:
        StorageError: it is not there at the deadline.
    """
    if node.exists():  # noqa: ASYNC240 - one stat of devtmpfs
        return
    async with _socket_class()() as events:
        await events.bind(_KERNEL)
        try:
            async with asyncio.timeout(timeout_s):
                while not node.exists():  # noqa: ASYNC240
                    async for _ in events.get():
                        break
        except TimeoutError:
            raise StorageError(f"{node} did not appear within {timeout_s:g} s") from None
