"""Parts of a planned image, made from a disk: right, in order, made again, and let go of."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from unittest.mock import Mock, call

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.errors import StorageError
from blockd.domain.transfer import Progress
from blockd.domain.volume import OpenDisk
from blockd.transfer.digest import ContentDigest
from blockd.transfer.disk_reader import DiskReader, open_disk
from blockd.transfer.parts import PartsWriter
from blockd.transfer.planned_export import PlannedImage
from blockd.transfer.qcow2_plan import TargetPlan
from blockd.transfer.s3_answers import Part

MIB = 1024**2
PART = MIB
TRAILER = b"the trailer"


class Server:
    """Keeps the parts that are sent to it."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def take(self, number: int, data: memoryview) -> str:
        """See `PartsWriter`."""
        await self.may_answer.wait()
        self.parts[number] = bytes(data)
        return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'

    def has(self, count: int) -> list[Part]:
        """The first parts, as it lists them."""
        return [
            Part(number, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())
            for number, data in sorted(self.parts.items())[:count]
        ]


def make_disk(path: Path, size_bytes: int, clusters: set[int]) -> Allocation:
    """Noise with runs of 4 KiB of zeros, every seventh cluster all zeros; noise, too, where nothing
    is allocated, and behind the end.
    """
    chance, allocation = random.Random(size_bytes), Allocation(size_bytes)
    with path.open("wb") as file:
        file.write(chance.randbytes((size_bytes // CLUSTER_BYTES + 2) * CLUSTER_BYTES))
        for cluster in clusters:
            allocation.add(cluster * CLUSTER_BYTES, CLUSTER_BYTES)
            begin = cluster * CLUSTER_BYTES
            file.seek(begin + 4096 * (cluster % 16))
            file.write(bytes(4096))
            if cluster % 7 == 0:
                file.seek(begin)
                file.write(bytes(min(CLUSTER_BYTES, size_bytes - begin)))
    return allocation


def bytes_of(path: Path, allocation: Allocation) -> bytes:
    """The disk: what is not allocated reads as zeros."""
    found = bytearray(allocation.size_bytes)
    content = path.read_bytes()[: allocation.size_bytes]
    for first, count in allocation.runs():
        begin, end = first * CLUSTER_BYTES, (first + count) * CLUSTER_BYTES
        found[begin:end] = content[begin:end]
    return bytes(found)


def opened(disk_file: Path, allocation: Allocation) -> AbstractAsyncContextManager[DiskReader]:
    """A reader of the disk."""
    return open_disk(OpenDisk(str(disk_file), 0), allocation.size_bytes, past_cache=True)


async def export(disk: DiskReader, allocation: Allocation, server: Server, count: int = 0) -> str:
    """Send what is not at the server, which has `count` parts; the content digest."""
    image = PlannedImage(TargetPlan(allocation), disk, PART)
    digest, progress = ContentDigest(), Mock(Progress)
    async with PartsWriter(server.take, part_bytes=PART, buffers=3, clears=False) as parts:
        sent = await image.sent_before(server.has(count), digest, progress)
        assert progress.skip.mock_calls == [call(PART)] * len(sent)
        return await image.send(parts, digest, lambda _: TRAILER, first=len(sent))


@pytest.fixture
def disk_file(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 80 * CLUSTER_BYTES // 512).map(lambda sectors: sectors * 512),
    st.sets(st.integers(0, 79)),
    st.integers(0, 5),
    st.booleans(),
)
def test_image_is_the_disk_and_goes_on_from_any_part(
    disk_file: Path, size_bytes: int, clusters: set[int], sent: int, past_cache: bool
) -> None:
    clusters = {cluster for cluster in clusters if cluster * CLUSTER_BYTES < size_bytes}
    allocation = make_disk(disk_file, size_bytes, clusters)
    server, again = Server(), Server()

    async def both() -> tuple[str, str]:
        source = OpenDisk(str(disk_file), size_bytes)
        async with open_disk(source, size_bytes, past_cache=past_cache) as disk:
            whole = await export(disk, allocation, server)
            again.parts = {n: data for n, data in server.parts.items() if n <= sent}
            return whole, await export(disk, allocation, again, sent)

    whole, rest = asyncio.run(both())
    assert again.parts == server.parts
    content = b"".join(data for _, data in sorted(server.parts.items()))
    assert all(len(server.parts[number]) == PART for number in range(1, len(server.parts)))
    assert content.endswith(TRAILER)
    wanted = bytes_of(disk_file, allocation)
    digest = ContentDigest()
    digest.add(0, wanted)
    assert whole == rest == digest.hex()
    (image := disk_file.with_suffix(".qcow2")).write_bytes(content)
    raw = disk_file.with_suffix(".raw")
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw"]
    subprocess.run([*convert, str(image), str(raw)], check=True, timeout=60)
    assert raw.read_bytes() == wanted
    subprocess.run(["qemu-img", "check", "-q", str(image)], check=True, timeout=60)


async def test_trailer_of_an_image_of_whole_parts_is_a_part_of_its_own(disk_file: Path) -> None:
    data = 2 * PART // CLUSTER_BYTES - 5  # tables
    allocation = make_disk(disk_file, data * CLUSTER_BYTES, set(range(data)))
    assert TargetPlan(allocation).object_bytes == 2 * PART
    server, again = Server(), Server()
    async with opened(disk_file, allocation) as disk:
        digest = await export(disk, allocation, server)
        again.parts = {n: server.parts[n] for n in (1, 2)}
        assert await export(disk, allocation, again, 2) == digest
    assert server.parts[3] == again.parts[3] == TRAILER
    assert sorted(server.parts) == [1, 2, 3]


async def test_parts_from_the_first_that_is_another_on_are_sent_again(disk_file: Path) -> None:
    allocation = make_disk(disk_file, 70 * CLUSTER_BYTES, set(range(70)))
    server = Server()
    async with opened(disk_file, allocation) as disk:
        digest = await export(disk, allocation, server)
        right = dict(server.parts)
        server.parts[3] = right[3][:-1] + bytes([right[3][-1] ^ 1])
        sent: list[int] = []

        async def take(number: int, data: memoryview) -> str:
            sent.append(number)
            return await Server.take(server, number, data)

        again = Server()
        again.parts, again.take = server.parts, take  # type: ignore[method-assign]
        assert await export(disk, allocation, again, 5) == digest
    assert (sorted(sent), server.parts) == ([3, 4, 5], right)


async def test_disk_that_ends_early_is_the_error(disk_file: Path) -> None:
    allocation = make_disk(disk_file, 40 * CLUSTER_BYTES, set(range(40)))
    os.truncate(disk_file, 30 * CLUSTER_BYTES)
    async with opened(disk_file, allocation) as disk:
        with pytest.raises(StorageError, match="shorter than its volume"):
            await export(disk, allocation, Server())


async def test_server_that_refuses_is_the_error_and_no_more_is_read(disk_file: Path) -> None:
    allocation = make_disk(disk_file, 400 * CLUSTER_BYTES, set(range(400)))

    async def refuse(number: int, data: memoryview) -> str:
        raise StorageError(f"part {number} of {len(data)} bytes is not wanted")

    server = Server()
    server.take = refuse  # type: ignore[method-assign]
    async with opened(disk_file, allocation) as disk:
        with pytest.raises(StorageError, match="part 1 of"):
            await export(disk, allocation, server)


async def test_disk_that_hangs_is_let_go_of_only_when_it_answers_however_often_that_is_cancelled(
    disk_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, may_read = threading.Semaphore(0), threading.Event()
    failed: list[Exception] = []
    preadv = os.preadv

    def hang(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reading.release()
        assert may_read.wait(20)
        try:
            return preadv(descriptor, buffers, offset)
        except Exception as err:
            failed.append(err)
            raise

    monkeypatch.setattr(os, "preadv", hang)
    allocation = make_disk(disk_file, 200 * CLUSTER_BYTES, set(range(200)))
    before = set(os.listdir("/proc/self/fd"))

    async def work() -> None:
        async with opened(disk_file, allocation) as disk:
            image = PlannedImage(TargetPlan(allocation), disk, 8 * MIB)
            async with PartsWriter(Server().take, part_bytes=8 * MIB, buffers=2, clears=False) as p:
                await image.send(p, ContentDigest(), lambda _: TRAILER, first=0)

    exporting = asyncio.create_task(work())
    for _ in range(4):
        assert await asyncio.to_thread(reading.acquire, timeout=20)
    for _ in range(3):
        exporting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not exporting.done()
    may_read.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(exporting, 20)
    assert not failed, "the disk was closed under a read"
    assert set(os.listdir("/proc/self/fd")) <= before | {str(max(map(int, before)) + 1)}


async def test_part_that_ends_within_a_cluster_is_refused(disk_file: Path) -> None:
    allocation = make_disk(disk_file, CLUSTER_BYTES, {0})
    async with opened(disk_file, allocation) as disk:
        with pytest.raises(ValueError, match="not whole clusters"):
            PlannedImage(TargetPlan(allocation), disk, PART + 512)
