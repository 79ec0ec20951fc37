"""Kernel uevents through pyroute2: the only place with netlink."""

from __future__ import annotations

import asyncio
from pathlib import Path

from blockd.domain.errors import StorageError

NODE_DEADLINE_S = 10.0


async def wait_for_node(node: Path, timeout_s: float = NODE_DEADLINE_S) -> None:
    """Wait until a device node is there.

    devtmpfs makes nodes before the kernel announces them, so there is mostly nothing to wait for;
    otherwise each uevent is an occasion to look again.

    Raises:
        StorageError: it is not there at the deadline.
    """
    if node.exists():  # noqa: ASYNC240 - one stat of devtmpfs
        return
    # Here and not above: it brings all of pyroute2, a third of the daemon's start.
    from pyroute2.netlink.uevent import (  # noqa: PLC0415
        MONITOR_GROUP_KERNEL,
        AsyncUeventSocket,
    )

    async with AsyncUeventSocket() as events:
        await events.bind(MONITOR_GROUP_KERNEL)
        try:
            async with asyncio.timeout(timeout_s):
                while not node.exists():  # noqa: ASYNC240
                    async for _ in events.get():
                        break
        except TimeoutError:
            raise StorageError(f"{node} did not appear within {timeout_s:g} s") from None
