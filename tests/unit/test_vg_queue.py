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


async def test_urgent_turn_goes_before_those_that_wait_and_not_before_the_holder() -> None:
    queue, order = VgQueue(lambda _: None), []

    async def take(name: str, *, urgent: bool = False) -> None:
        async with queue.turn(urgent=urgent):
            order.append(name)

    async with asyncio.TaskGroup() as tasks, queue.turn():
        for name in ("first", "second"):
            tasks.create_task(take(name))
        await asyncio.sleep(0)
        for name in ("one", "two"):
            tasks.create_task(take(name, urgent=True))
        await asyncio.sleep(0)
        order.append("holder")
    assert order == ["holder", "one", "two", "first", "second"]
