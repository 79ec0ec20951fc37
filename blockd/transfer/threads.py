"""Threads that use descriptors and memory which go away with who started them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager


@asynccontextmanager
async def threads(count: int, name: str) -> AsyncIterator[ThreadPoolExecutor]:
    """So many threads for the length of the block.

    What they are about ends before we leave, however often we are told to; what waits for one of
    them does not begin. A disk that hangs holds us up, but not the loop.
    """
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        ending = asyncio.ensure_future(
            asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)
        )
        cancelled = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
