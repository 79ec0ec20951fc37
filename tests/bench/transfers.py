"""Exports, natively, beside what one would do by hand; what `imports.py` shares with that.

The disk is a loop device over a sparse file, and the file says what is allocated, as thin metadata
would: a loop device can tell qemu-img as little of its holes as dm-thin can. The client is blockd's
own in every contender, so that only the way differs.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio

from blockd.domain.allocation import Allocation
from blockd.domain.effects import SideEffects
from blockd.domain.job import Compression
from blockd.domain.transfer import ExportOrder, ImageFacts, Progress
from blockd.domain.units import GIB, MIB
from blockd.domain.volume import OpenDisk
from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.images import Images, TransferSettings
from blockd.transfer.qemu_img import QemuImg
from blockd.transfer.s3 import Endpoint, Keys, ObjectStore, open_object_store
from tests.bench.report import Section, ratio, table
from tests.support.file_disks import data_ranges
from tests.support.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, Server, object_store

PART, PARALLEL = 16 * MIB, 4
MOST_MEMORY_MIB = 64 + PART // MIB * (PARALLEL + 2)
DATA_MIB = 512


class _NoNotes:
    """Nothing is journalled here."""

    async def creating(self, uploads_before: Sequence[str]) -> None: ...

    async def uploading(self, upload_id: str, part_bytes: int) -> None: ...

    async def completing(self, content_digest: str) -> None: ...


@dataclass
class Bench:
    """One server, one client, one disk."""

    url: str
    store: ObjectStore
    images: Images
    folder: Path

    async def export(self, disk: Path, allocation: Allocation, key: str) -> int:
        """As blockd does it; the object's size."""
        size = allocation.size_bytes
        return await self.export_as(disk, size, allocation, Compression.NONE, key)

    async def export_as(
        self,
        disk: Path,
        size_bytes: int,
        allocation: Allocation | None,
        compression: Compression,
        key: str,
    ) -> int:
        """The same, also packed, or of a disk that cannot tell what is allocated."""
        order = ExportOrder("job", "snapshot", BUCKET, key, size_bytes, compression)
        source = OpenDisk(str(disk), size_bytes)
        done = await self.images.export(order, source, allocation, _NoNotes(), Progress())
        return done.object_bytes

    async def upload(self, path: Path | bytes, key: str) -> None:
        """A file, or bytes, with the same client, in the same parts."""
        upload_id = await self.store.create_upload(BUCKET, key, {})
        size = len(path) if isinstance(path, bytes) else path.stat().st_size
        slots, etags = asyncio.Semaphore(PARALLEL), dict[int, str]()

        async def one(number: int) -> None:
            async with slots:
                begin = number * PART
                if isinstance(path, bytes):
                    data: bytes | memoryview = memoryview(path)[begin : begin + PART]
                else:
                    with path.open("rb") as file:
                        data = os.pread(file.fileno(), PART, begin)
                etags[number] = await self.store.upload_part(
                    BUCKET, key, upload_id, number + 1, data, asyncio.Semaphore()
                )

        await asyncio.gather(*(one(number) for number in range(-(-size // PART))))
        await self.store.complete_upload(BUCKET, key, upload_id, [etags[n] for n in sorted(etags)])

    async def restore(self, image: ImageFacts, target: Path) -> None:
        """As blockd does it, reading back included."""
        empty(target, image.virtual_size_bytes)
        disk = OpenDisk(str(target), image.virtual_size_bytes)
        assert await self.images.restore(image, disk, Progress()) == image.content_digest

    async def fetch(self, image: ImageFacts, to: Path) -> None:
        """A plain download, as minio-py does it: one request, one stream, to a file."""
        url = urlsplit(self.url)
        client = Minio(url.netloc, ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1")
        await asyncio.to_thread(client.fget_object, image.bucket, image.key, str(to))

    async def download(self, image: ImageFacts, to: Path) -> None:
        """The same with blockd's client, in ranges of 4 MiB, several at once."""
        slots = asyncio.Semaphore(PARALLEL + 1)
        step = 4 * MIB
        with to.open("wb") as file:

            async def one(begin: int) -> None:
                async with slots:
                    piece = memoryview(bytearray(min(step, image.object_bytes - begin)))
                    await self.store.read(image.bucket, image.key, image.etag, begin, piece)
                    os.pwrite(file.fileno(), piece, begin)

            await asyncio.gather(*(one(begin) for begin in range(0, image.object_bytes, step)))


def section(*, quick: bool) -> Section:
    """The tables."""
    return natively("transfers", partial(_measure, 2 if quick else 3))


def natively(name: str, measure: Callable[[], Coroutine[None, None, str]]) -> Section:
    """What `measure` tells, where there can be loop devices."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return Section(name, "Not measured: needs root and loop devices.")
    return Section(name, asyncio.run(measure()))


async def _measure(rounds: int) -> str:
    async with served() as (server, bench):
        exports = await _exports(bench, rounds)
        memory, cpu_s = alone("tests.bench.transfers", server.url, bench.folder)
    head = ("what", "peak memory, MiB", "goal, at most", "CPU s per GiB, qemu-img included")
    told = table(head, [("export", memory, MOST_MEMORY_MIB, cpu_s)])
    return f"{_TEXT}\n\n{exports}\n\n{told}"


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Server, Bench]]:
    """A server, and a client of it, with a folder of their own."""
    with tempfile.TemporaryDirectory(dir=_place(), prefix="blockd-bench-") as name:
        folder = Path(name)
        with object_store(folder) as server:
            async with client(server.url, folder) as bench:
                yield server, bench


def alone(module: str, *argv: object) -> tuple[str, str]:
    """What a process prints that does nothing else: peak memory, processor time for a GiB."""
    command = [sys.executable, "-m", module, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory_mib, cpu_s = map(float, done.stdout.splitlines()[-1].split())
    return f"{memory_mib:.0f}", f"{cpu_s:.2f}"


def _place() -> str:
    """Memory, so that no disk is what is measured; without enough of it, a disk."""
    return "/dev/shm" if shutil.disk_usage("/dev/shm").free > 6 * GIB else "/var/tmp"


_TEXT = (
    "Natively, over `rclone serve s3` on the loopback, all files in memory (`/dev/shm`), so that"
    " no disk is what is measured: 512 MiB of noise in pieces of 1 MiB, all over a disk of 16 GiB"
    " (3.1 %), on a loop device. Seconds, median; contenders take turns. *By hand* are `qemu-img"
    " convert -O qcow2` from the device, that and an upload of the file, and a bare upload of the"
    " object's bytes from memory, both with blockd's own client."
)


async def _exports(bench: Bench, rounds: int) -> str:
    file = bench.folder / "disk"
    make_disk(file, 16 * GIB)
    allocation = allocation_of(file)
    scratch, content = bench.folder / "scratch.qcow2", b""
    timed: dict[str, list[float]] = {}
    with loop_device(file) as device:
        had = _bytes_read(device)
        size = await bench.export(device, allocation, "export.qcow2")
        read = _bytes_read(device) - had
        content = (bench.folder / "objects" / BUCKET / "export.qcow2").read_bytes()

        async def convert() -> None:
            await _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", device, scratch)

        async def convert_and_upload() -> None:
            await convert()
            await bench.upload(scratch, "byhand.qcow2")

        contenders: dict[str, Callable[[], Awaitable[object]]] = {
            "blockd": lambda: bench.export(device, allocation, "export.qcow2"),
            "convert alone": convert,
            "convert, upload": convert_and_upload,
            "bare upload": lambda: bench.upload(content, "bare.qcow2"),
        }
        # Nobody begins with what the one before has left: 16 GiB of page cache, say.
        between = partial(_forget, device)
        timed = await turns(contenders, rounds, between)
        # What is closest is compared once more, in three times as many turns.
        closest = {name: contenders[name] for name in ("blockd", "bare upload")}
        near = await turns(closest, 3 * rounds, between)
    sizes = {}
    for virtual in (2 * GIB, 1024 * GIB):
        make_disk(file, virtual)
        sizes[virtual] = allocation_of(file)
        with loop_device(file) as device:
            export = partial(bench.export, device, sizes[virtual], "v.qcow2")
            timed |= await turns({str(virtual): export}, rounds)
    rows = [
        ("convert alone", seconds(timed["convert alone"]), "0.25"),
        ("convert, upload", seconds(timed["convert, upload"]), "0.75"),
    ]
    of = [(n, s, ratio(timed["blockd"], timed[n]), goal) for n, s, goal in rows]
    bare = ratio(near["blockd"], near["bare upload"])
    of.append(("bare upload", seconds(near["bare upload"]), bare, "1.15"))
    large = ratio(timed[str(1024 * GIB)], timed[str(2 * GIB)])
    of.append(
        ("itself, 2 GiB instead of 1 TiB virtual", seconds(timed[str(2 * GIB)]), large, "1.15")
    )
    head = f"export, {seconds(timed['blockd'])} s ({size / MIB:.0f} MiB): beside"
    times = table((head, "s", "blockd takes, times", "goal, at most"), of)
    allocated = allocation.allocated_bytes
    share, goal = f"{read / allocated:.4f}", f"{1.02 + 2 * MIB / allocated:.4f}"
    row = (f"{read / MIB:.1f}", f"{allocated / MIB:.1f}", share, goal)
    head = "export: read from the device, MiB (`/sys/block/…/stat`)"
    return times + "\n\n" + table((head, "allocated, MiB", "times", "goal, at most"), [row])


async def _alone(url: str, folder: Path) -> None:
    file = folder / "disk"
    async with client(url, folder) as bench:
        make_disk(file, 16 * GIB)
        with loop_device(file) as device:
            began = cpu_s()
            size = await bench.export(device, allocation_of(file), "memory.qcow2")
    print(peak_mib(), (cpu_s() - began) / (size / GIB))


def cpu_s() -> float:
    """Processor time of this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mib() -> float:
    """The most memory that this process had."""
    # Not ru_maxrss, which begins with what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@asynccontextmanager
async def client(url: str, folder: Path) -> AsyncIterator[Bench]:
    """A client of the server at `url`."""
    async with open_object_store(
        Endpoint(url),
        Keys(ACCESS_KEY, SECRET_KEY),
        SideEffects(),
        patience_s=60,
        bandwidth=Bandwidth(0),
        connections=PARALLEL + 2,
    ) as store:
        settings = TransferSettings(PART, 10_000, PARALLEL, folder / "scratch", GIB)
        yield Bench(url, store, Images(store, QemuImg(GIB), settings), folder)


async def turns(
    contenders: Mapping[str, Callable[[], Awaitable[object]]],
    rounds: int,
    between: Callable[[], object] = os.sync,
) -> dict[str, list[float]]:
    """Seconds of each, in turns; another one begins each round.

    A round before them is not timed: the server's memory grows in it, and in a virtual machine a
    page that nobody had before costs many times as much.
    """
    timed: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            await asyncio.to_thread(between)
            began = time.monotonic()
            await contenders[name]()
            timed[name].append(time.monotonic() - began)
    return {name: samples[1:] for name, samples in timed.items()}


async def _run(*argv: object) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, argv))
    assert await process.wait() == 0


def make_disk(path: Path, size_bytes: int, piece_bytes: int = MIB) -> None:
    """A sparse file with `DATA_MIB` of noise in scattered pieces, the same for the same size."""
    empty(path, size_bytes)
    chance = random.Random(3)
    noise = os.urandom(64 * MIB)
    with path.open("r+b") as file:
        for place in chance.sample(range(size_bytes // piece_bytes), DATA_MIB * MIB // piece_bytes):
            begin = chance.randrange(63 * MIB)
            os.pwrite(file.fileno(), noise[begin : begin + piece_bytes], place * piece_bytes)
        os.fsync(file.fileno())


def _bytes_read(device: Path) -> int:
    return int(Path(f"/sys/block/{device.name}/stat").read_text().split()[2]) * 512


def _forget(device: Path) -> None:
    """Write back, and drop what the page cache has of the device."""
    os.sync()
    with device.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def empty(path: Path, size_bytes: int) -> None:
    """Make a sparse file of it."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size_bytes)


def allocation_of(path: Path) -> Allocation:
    """What the file system has allocated."""
    allocation = Allocation(path.stat().st_size)
    with path.open("rb") as file:
        for begin, end in data_ranges(file.fileno()):
            allocation.add(begin, end - begin)
    return allocation


@contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A loop device over the file."""
    made = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=off", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def seconds(samples: Sequence[float]) -> str:
    """The median of them."""
    return f"{sorted(samples)[len(samples) // 2]:.2f}"


if __name__ == "__main__":
    asyncio.run(_alone(sys.argv[1], Path(sys.argv[2])))
