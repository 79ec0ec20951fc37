"""The turn: one at a time, first come, first served, and no waiter can take it away."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.storage import Storage

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEADLINE_S = 10


async def arrived(task: asyncio.Task[None]) -> None:
    """Let a task run up to where it waits for its turn."""
    await asyncio.wait([task], timeout=0)
    await asyncio.sleep(0)


async def test_turn_is_given_in_the_order_of_asking(storage: Storage) -> None:
    order: list[int] = []
    holders = 0

    async def take(number: int) -> None:
        nonlocal holders
        async with storage.driver.turn():
            holders += 1
            assert holders == 1
            await asyncio.sleep(0)  # whoever does not wait would come in here
            order.append(number)
            holders -= 1

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks, storage.driver.turn():
        for number in range(5):
            await arrived(tasks.create_task(take(number)))
        assert order == []
    assert order == [0, 1, 2, 3, 4]


async def test_turn_is_free_again_after_an_error(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storage.driver.turn():
            raise ZeroDivisionError
    async with asyncio.timeout(DEADLINE_S), storage.driver.turn():
        pass


@pytest.mark.parametrize("granted", [False, True], ids=["while waiting", "when just granted"])
async def test_cancelled_waiter_does_not_lose_the_turn_for_others(
    storage: Storage, granted: bool
) -> None:
    async def take() -> None:
        async with storage.driver.turn():
            pass

    turn = storage.driver.turn()
    await turn.__aenter__()
    leaving = asyncio.create_task(take())
    await arrived(leaving)
    staying = asyncio.create_task(take())
    await arrived(staying)
    if not granted:
        leaving.cancel()
    await turn.__aexit__(None, None, None)
    leaving.cancel()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await staying
        async with storage.driver.turn():
            pass


async def test_holder_of_another_turn_is_given_it_before_all_who_wait_for_this_one_alone(
    storage: Storage,
) -> None:
    order: list[str] = []

    async def take(name: str, holds_another: bool) -> None:
        async with storage.driver.turn(holds_another=holds_another):
            order.append(name)

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks, storage.driver.turn():
        for name in ("first", "second"):
            await arrived(tasks.create_task(take(name, False)))
        await arrived(tasks.create_task(take("holder", True)))
        assert order == []
    assert order == ["holder", "first", "second"]
