"""How often an object is fetched, by how it is read."""

from __future__ import annotations

import random
from typing import cast

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.transfer import ImageFacts
from blockd.domain.units import GIB, MIB
from blockd.transfer.object_reader import ObjectReader
from blockd.transfer.s3 import ObjectStore

CONTENT = random.Random(1).randbytes(64 * MIB)


class CountingStore:
    """What `ObjectReader` needs of a store; `fetched_bytes` left it, in `fetches`."""

    def __init__(self) -> None:
        self.fetched_bytes = self.fetches = 0

    async def read(self, bucket: str, key: str, etag: str, offset: int, into: memoryview) -> None:
        """See `ObjectStore`."""
        self.fetched_bytes += len(into)
        self.fetches += 1
        into[:] = CONTENT[offset : offset + len(into)]


def reader(store: CountingStore, ahead_blocks: int) -> ObjectReader:
    image = ImageFacts("bucket", "key", "etag", len(CONTENT), GIB, None)
    return ObjectReader(
        cast("ObjectStore", store), image, ahead_blocks=ahead_blocks, on_bytes=lambda _: None
    )


async def read(of: ObjectReader, offset: int, length: int) -> None:
    pieces = await of.read(offset, length)
    assert b"".join(bytes(piece) for piece in pieces) == CONTENT[offset : offset + length]


async def test_tables_behind_the_header_come_with_it() -> None:
    store = CountingStore()
    async with reader(store, 4) as one:
        assert await one.table(0, 100) == CONTENT[:100]
        for offset in (0, 196_608, 65_536, 262_144, 3 * MIB):
            await read(one, offset, 65536)
    assert store.fetches == 1


async def test_bytes_that_came_with_the_tables_are_not_fetched_again() -> None:
    store = CountingStore()
    async with reader(store, 4) as one:
        await one.table(0, 100)
        for offset, length in ((MIB, MIB), (3 * MIB, 4 * MIB), (7 * MIB, MIB)):
            into = bytearray(length)
            await one.fill(offset, memoryview(into))
            assert into == CONTENT[offset : offset + length]
    assert (store.fetches, store.fetched_bytes) == (3, 8 * MIB)


async def test_tables_elsewhere_come_alone() -> None:
    store = CountingStore()
    async with reader(store, 4) as one:
        for offset in (40 * MIB, 4 * MIB - 512, 63 * MIB):
            assert await one.table(offset, 1024) == CONTENT[offset : offset + 1024]
    assert (store.fetches, store.fetched_bytes) == (3, 3 * 1024)


@pytest.mark.parametrize("ahead_blocks", [1, 4, 9, 16, 64])
async def test_object_that_is_read_upwards_is_fetched_once(ahead_blocks: int) -> None:
    store = CountingStore()
    async with reader(store, ahead_blocks) as one:
        for offset in range(0, len(CONTENT), MIB // 2):
            await read(one, offset, MIB // 2)
    assert len(CONTENT) <= store.fetched_bytes <= len(CONTENT) + MIB


async def test_clusters_in_any_order_are_fetched_alone() -> None:
    store, clusters = CountingStore(), list(range(0, len(CONTENT), 65536))
    random.Random(2).shuffle(clusters)
    async with reader(store, 4) as one:
        for offset in clusters:
            await read(one, offset, 65536)
        await read(one, 1000, 3)
        await read(one, len(CONTENT) - 70_000, 70_000)
    assert store.fetched_bytes <= 2 * len(CONTENT)


async def test_image_that_is_read_for_ever_is_given_up() -> None:
    store = CountingStore()

    async def for_ever() -> None:
        async with reader(store, 4) as one:
            for number in range(10**6):
                await read(one, number * 7 % 15 * 4 * MIB, 65536)

    with pytest.raises(StorageError, match="over and over"):
        await for_ever()
    assert store.fetched_bytes <= 16 * len(CONTENT) + GIB
