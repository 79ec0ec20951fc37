"""A faulty object store that runs in a thread of its own, for tests that are not asynchronous."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.faulty_store import FaultyStore
from tests.support.object_store import Server


@contextmanager
def faulty_store(server: Server) -> Iterator[tuple[FaultyStore, Server]]:
    """The proxy, whose `faults` may be changed at any time, and the server as seen through it."""
    loop = asyncio.new_event_loop()
    store, ready, stop = FaultyStore(server), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with store.serve():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="store")
    thread.start()
    try:
        assert ready.wait(30), "the proxy does not start"
        yield store, dataclasses.replace(server, port=store.port)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
