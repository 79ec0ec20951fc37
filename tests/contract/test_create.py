"""A new disk: zeros, of exactly the size asked for."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from blockd.domain.units import GIB, MIB
from blockd.service.ports import FrontSpec
from tests.contract.storage import LvmStorage, Storage
from tests.support import stamps

pytestmark = pytest.mark.asyncio(loop_scope="session")

ODD_SIZES = [MIB, MIB + 512, 1_000_000_000, 5 * GIB - 512]


async def test_create_reads_zeros(storage: Storage) -> None:
    front = await storage.volume(8 * MIB)
    stamps.expect(storage.path(front), 0)


@pytest.mark.parametrize("size_bytes", [size for size in ODD_SIZES if size <= GIB])
async def test_create_off_the_extent_grid_gives_a_front_of_the_exact_size(
    storage: Storage, size_bytes: int
) -> None:
    await _expect_exact_size(storage, size_bytes)


@pytest.mark.parametrize("size_bytes", [size for size in ODD_SIZES if size > GIB])
async def test_create_larger_than_the_pool_gives_a_front_of_the_exact_size(
    thin_storage: Storage, size_bytes: int
) -> None:
    await _expect_exact_size(thin_storage, size_bytes)


async def _expect_exact_size(storage: Storage, size_bytes: int) -> None:
    front = await storage.volume(size_bytes)
    assert storage.driver.device(front).size_bytes == size_bytes
    tail = (size_bytes - MIB) // stamps.BLOCK_BYTES * stamps.BLOCK_BYTES
    with stamps.opened(storage.path(front), write=True) as device:
        assert device.size_bytes == size_bytes
        device.write(1, tail)
    with stamps.opened(storage.path(front)) as device:
        device.expect(1, tail)
        device.expect(0, 0, min(tail, MIB))
    assert (await storage.driver.disks())[front.disk] >= size_bytes


@pytest.mark.parametrize("grown_bytes", [2 * MIB, 8 * MIB], ids=["same extent", "more extents"])
async def test_write_beyond_the_end_never_becomes_part_of_the_volume(
    storage: Storage, grown_bytes: int
) -> None:
    front = await storage.volume(MIB + 512, generation=1)
    descriptor = storage.open_front(front)
    with suppress(OSError):  # a file cannot refuse it, a device does: see the next test
        os.pwrite(descriptor, b"beyond" * 1024, front.size_bytes)
    os.close(descriptor)
    front = await storage.grow(front, grown_bytes)
    with stamps.opened(storage.path(front)) as device:
        device.expect(1, 0, MIB)
        device.expect(0, MIB + stamps.BLOCK_BYTES)
        ((_, straddling),) = device.read(MIB, MIB + stamps.BLOCK_BYTES)
    assert straddling == stamps.block(MIB, 1)[:512] + bytes(stamps.BLOCK_BYTES - 512)


@pytest.mark.kernel
async def test_write_beyond_the_end_of_a_device_is_refused(lvm: LvmStorage) -> None:
    front = await lvm.volume(MIB + 512)
    descriptor = lvm.open_front(front)
    try:
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(descriptor, bytes(512), front.size_bytes)
    finally:
        os.close(descriptor)


async def test_create_over_remains_of_a_broken_off_attempt_starts_afresh(storage: Storage) -> None:
    remains = await storage.volume(8 * MIB, generation=1)
    await storage.disconnect(remains)
    await storage.create(12 * MIB, disk=remains.disk)
    front = FrontSpec(remains.volume_id, remains.disk, 12 * MIB)
    stamps.expect(await storage.connect(front), 0)


async def test_create_where_an_erased_disk_was_reads_zeros(storage: Storage) -> None:
    former = await storage.volume(16 * MIB, generation=1)
    await storage.drop(former)
    front = await storage.volume(16 * MIB)
    stamps.expect(storage.path(front), 0)


async def test_first_small_write_where_an_erased_disk_was_leaves_zeros_around_it(
    storage: Storage,
) -> None:
    """A thin chunk is allocated by the first write into it: the rest of it must be zeroed."""
    await storage.drop(await storage.volume(16 * MIB, generation=1))
    front = await storage.volume(16 * MIB)
    with stamps.opened(storage.path(front), write=True) as device:
        for chunk in range(0, front.size_bytes, MIB):
            device.write(2, chunk + 8192, chunk + 8192 + stamps.BLOCK_BYTES)
    with stamps.opened(storage.path(front)) as device:
        for chunk in range(0, front.size_bytes, MIB):
            device.expect(0, chunk, chunk + 8192)
            device.expect(2, chunk + 8192, chunk + 12288)
            device.expect(0, chunk + 12288, chunk + MIB)
