"""What exports that qemu-img lays out (compressed, of thick snapshots) hold on scratch."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread

from blockd.domain.job import Compression
from blockd.domain.units import GIB, MIB
from tests.bench.report import Section, table
from tests.bench.transfers import (
    MOST_MEMORY_MIB,
    Bench,
    allocation_of,
    alone,
    client,
    cpu_s,
    loop_device,
    make_disk,
    natively,
    peak_mib,
    served,
)

_TEXT = (
    "As *transfers*: 512 MiB of noise all over a disk, exported with `zstd`, and without, as of a"
    " thick snapshot, which cannot tell what is allocated. *Scratch* is the most that a file"
    " system of its own (tmpfs) held for it, looked at every 5 ms. Exports with a plan"
    " (*transfers*) open no scratch at all."
)
KIB, _GOAL = 1024, "0.02"


def section(*, quick: bool) -> Section:
    """The tables."""
    return natively("scratch", partial(_measure, quick=quick))


async def _measure(*, quick: bool) -> str:
    async with served() as (server, bench):
        packed = Compression.ZSTD
        rows = [
            await _held(bench, 16 * GIB, MIB, packed),
            await _held(bench, 1024 * GIB, MIB, packed),
            await _held(bench, 1024 * GIB, 64 * KIB, packed),
            await _held(bench, 16 * GIB if quick else 200 * GIB, MIB, None),
        ]
        memory, used_s = alone("tests.bench.scratch", server.url, bench.folder)
    sizes = ("in pieces of, KiB", "virtual, GiB", "object, MiB")
    held = table(("export", *sizes, "scratch, MiB", "times", "goal, at most"), rows)
    head = ("what", "peak memory, MiB", "goal, at most", "CPU s per GiB, qemu-img included")
    told = table(head, [("export, zstd, 1 TiB", memory, MOST_MEMORY_MIB, used_s)])
    return f"{_TEXT}\n\n{held}\n\n{told}"


async def _held(
    bench: Bench, size_bytes: int, piece_bytes: int, packed: Compression | None
) -> tuple[object, ...]:
    """A row: packed, or thick."""
    file = bench.folder / "disk"
    make_disk(file, size_bytes, piece_bytes)
    allocation = None if packed is None else allocation_of(file)
    compression = Compression.NONE if packed is None else packed
    with loop_device(file) as device, _watched(bench.folder / "scratch") as watched:
        done = await bench.export_as(device, size_bytes, allocation, compression, "held.qcow2")
    share = f"{watched.most_bytes / done:.4f}"
    what = "thick" if packed is None else packed.value
    told = (piece_bytes // KIB, size_bytes // GIB, f"{done / MIB:.0f}")
    return (what, *told, f"{watched.most_bytes / MIB:.2f}", share, _GOAL)


@dataclass
class _Watched:
    """The most that a file system had in use."""

    folder: Path
    most_bytes: int = 0
    _over: Event = field(default_factory=Event)

    def look(self) -> None:
        while not self._over.wait(0.005):
            found = os.statvfs(self.folder)
            self.most_bytes = max(
                self.most_bytes, (found.f_blocks - found.f_bfree) * found.f_frsize
            )

    def end(self) -> None:
        self._over.set()


@contextmanager
def _watched(folder: Path) -> Iterator[_Watched]:
    """A tmpfs of its own, looked at by a thread until the block ends."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "scratch", str(folder)], check=True)
    try:
        watched = _Watched(folder)
        thread = Thread(target=watched.look, name="scratch")
        thread.start()
        try:
            yield watched
        finally:
            watched.end()
            thread.join()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def _alone(url: str, folder: Path) -> None:
    file, size = folder / "disk", 1024 * GIB
    async with client(url, folder) as bench:
        make_disk(file, size)
        with loop_device(file) as device:
            began = cpu_s()
            allocation = allocation_of(file)
            done = await bench.export_as(device, size, allocation, Compression.ZSTD, "held.qcow2")
    print(peak_mib(), (cpu_s() - began) / (done / GIB))


if __name__ == "__main__":
    asyncio.run(_alone(sys.argv[1], Path(sys.argv[2])))
