"""Fronts that stand still together, over a kernel that hangs; the rest is in the contract suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import Event
from typing import cast

import pytest

from blockd.domain.effects import SideEffects
from blockd.domain.errors import StorageOverdue
from blockd.host.command import Companion
from blockd.storage import suspension
from blockd.storage.dm import DeviceInfo, DeviceMapper
from blockd.storage.fronts import Fronts
from blockd.storage.vg_queue import VgQueue

DEADLINE_S = 10.0
MAX_SUSPEND_S = 0.1


class Kernel:
    """Suspends and resumes; the device of `hung` does one of these when `answers` is set."""

    def __init__(self, hangs_in: str) -> None:
        self.suspended: set[str] = set()
        self.answers = Event()
        self._hangs_in = hangs_in

    def info(self, uuid: str) -> DeviceInfo | None:
        return cast("DeviceInfo", uuid)

    def suspend(self, uuid: str, *, freeze: bool) -> None:
        del freeze
        self._wait("suspend", uuid)
        self.suspended.add(uuid.rpartition("-")[2])

    def resume(self, uuid: str) -> None:
        self._wait("resume", uuid)
        self.suspended.discard(uuid.rpartition("-")[2])

    def _wait(self, verb: str, uuid: str) -> None:
        if verb == self._hangs_in and uuid.endswith("hung"):
            assert self.answers.wait(DEADLINE_S)


class Watchdog:
    """Is told, and does nothing."""

    def arm(self, what: str, within_s: float) -> None:
        del what, within_s

    def disarm(self, what: str) -> None:
        del what


@pytest.fixture(params=["suspend", "resume"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setattr(suspension, "_LEAVE_S", 0.1)
    kernel = Kernel(request.param)
    yield kernel
    kernel.answers.set()


def fronts_on(kernel: Kernel) -> Fronts:
    return Fronts(
        cast("DeviceMapper", kernel),
        cast("Companion", Watchdog()),
        SideEffects(),
        owner="sbs-1",
        max_suspend_s=MAX_SUSPEND_S,
    )


async def test_front_that_hangs_is_left_in_time_and_keeps_its_turn_until_it_is_resumed(
    kernel: Kernel,
) -> None:
    fronts, queue = fronts_on(kernel), VgQueue(lambda _: None)
    async with asyncio.timeout(DEADLINE_S / 2):
        with pytest.raises(StorageOverdue):
            async with queue.turn(), fronts.still(["one", "hung", "two"], queue.keep_until):
                pass
    # Whoever waits is let go at once; the others are resumed after that, in spite of the hung one.
    async with asyncio.timeout(DEADLINE_S / 2):
        while kernel.suspended & {"one", "two"}:
            await asyncio.sleep(0.005)
    next_turn = asyncio.create_task(queue.turn().__aenter__())
    removal = asyncio.create_task(fronts.disconnect("hung"))
    await asyncio.wait([next_turn, removal], timeout=0.1)
    assert (next_turn.done(), removal.done()) == (False, False), "it is still being resumed"
    removal.cancel()
    kernel.answers.set()
    async with asyncio.timeout(DEADLINE_S):
        await next_turn
    assert kernel.suspended == set()
    fronts.close()
