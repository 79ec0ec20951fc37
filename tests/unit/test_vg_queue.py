"""The queue of a volume group; its order and exclusiveness are in the contract suite."""

from __future__ import annotations

import asyncio

from blockd.storage.vg_queue import VgQueue


async def test_late_command_keeps_the_turn_of_a_holder_who_left() -> None:
    queue = VgQueue(lambda _: None)
    late = asyncio.Event()
    order: list[str] = []

    async def next_one() -> None:
        async with queue.turn():
            order.append("next")

    async with queue.turn():
        queue.keep_until(late.wait())
    waiting = asyncio.create_task(next_one())
    for _ in range(10):
        await asyncio.sleep(0)
    order.append("left")
    assert order == ["left"]
    late.set()
    await waiting
    assert order == ["left", "next"]


async def test_waiting_time_is_told_for_each_turn() -> None:
    waited: list[float] = []
    queue = VgQueue(waited.append)
    async with queue.turn():
        pass
    async with queue.turn():
        pass
    assert len(waited) == 2
    assert all(seconds >= 0 for seconds in waited)


async def test_two_late_commands_keep_the_turn_until_both_have_ended() -> None:
    queue = VgQueue(lambda _: None)
    first, second = asyncio.Event(), asyncio.Event()
    async with queue.turn():
        queue.keep_until(first.wait())
        queue.keep_until(second.wait())
    second.set()
    waiting = asyncio.create_task(queue.turn().__aenter__())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    first.set()
    await waiting
