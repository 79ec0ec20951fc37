"""The daemon as a task of this process: starts in a tenth of the time that a new process takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blockd.config import read_config
from blockd.daemon import run
from blockd.logs import set_up_logs
from tests.support.client import Api
from tests.support.daemon import Place

_START_S, _STOP_S = 60.0, 60.0


@asynccontextmanager
async def inner_daemon(place: Place) -> AsyncIterator[Api]:
    """It runs for the length of the block; callers of its API belong in another thread.

    Logs go to `run / blockd.log`, which is written anew. Only one at a time, in the main thread.

    Raises:
        StartError: it does not start.
    """
    channel = place.run / "notify.sock"
    channel.unlink(missing_ok=True)
    with (
        (place.run / "blockd.log").open("w", encoding="utf-8") as log,
        contextlib.redirect_stderr(log),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        notified.bind(str(channel))
        notified.setblocking(False)
        os.environ["NOTIFY_SOCKET"] = str(channel)
        set_up_logs("debug", "json")
        daemon = asyncio.create_task(run(read_config(place.config)))
        ready = asyncio.create_task(asyncio.get_running_loop().sock_recv(notified, 4096))
        try:
            await asyncio.wait(
                (daemon, ready), timeout=_START_S, return_when=asyncio.FIRST_COMPLETED
            )
            if daemon.done():
                await daemon
            if not ready.done():
                raise TimeoutError("the daemon is not ready in time")
            yield Api(place.run / "blockd.sock")
        finally:
            ready.cancel()
            if not daemon.done():
                os.kill(os.getpid(), signal.SIGTERM)
                async with asyncio.timeout(_STOP_S):
                    await daemon
            log.flush()
