"""Part buffers: so many and no more, and filled again only when nobody reads them."""

from __future__ import annotations

import asyncio

import pytest

from blockd.transfer.parts import PartsWriter, part_bytes_for

MIB = 1024**2


async def take(number: int, data: memoryview) -> str:
    return f"part {number}: {len(data)}"


async def test_buffer_is_not_filled_again_while_somebody_reads_it() -> None:
    reading = asyncio.get_running_loop().create_future()
    async with PartsWriter(take, part_bytes=MIB, buffers=1, clears=False) as parts:
        first = await parts.buffer()
        parts.submit(1, first, MIB, reading)
        again = asyncio.create_task(parts.buffer())
        done, _ = await asyncio.wait([again], timeout=0.1)
        assert not done
        reading.set_result(None)
        assert await asyncio.wait_for(again, 20) is first
        assert parts.etags == {1: f"part 1: {MIB}"}


async def test_reader_that_fails_is_the_error() -> None:
    reading = asyncio.get_running_loop().create_future()
    reading.set_exception(ValueError("out of order"))
    async with PartsWriter(take, part_bytes=MIB, buffers=1, clears=False) as parts:
        parts.submit(1, await parts.buffer(), MIB, reading)
        with pytest.raises(ValueError, match="out of order"):
            await parts.drain()


@pytest.mark.parametrize("clears", [True, False])
async def test_buffer_comes_back_cleared_only_where_that_is_asked_for(clears: bool) -> None:
    async with PartsWriter(take, part_bytes=MIB, buffers=1, clears=clears) as parts:
        first = await parts.buffer()
        first[:] = b"x" * MIB
        parts.submit(1, first, MIB)
        again = await asyncio.wait_for(parts.buffer(), 20)
        assert again[:] == (bytes(MIB) if clears else b"x" * MIB)


def test_parts_are_whole_mebibytes_and_as_many_as_there_may_be() -> None:
    assert part_bytes_for(10 * MIB, 5 * MIB, 10) == 5 * MIB
    assert part_bytes_for(10 * MIB, 5 * MIB + 1, 10) == 6 * MIB
    assert part_bytes_for(100 * MIB + 1, 5 * MIB, 10) == 11 * MIB
