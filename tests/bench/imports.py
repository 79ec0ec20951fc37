"""Imports, natively, beside what one would do by hand, over the same S3 server."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

from blockd.domain.transfer import ImageFacts
from blockd.domain.units import GIB
from tests.bench.far import far
from tests.bench.import_floor import import_floor
from tests.bench.report import Section, ratio, table
from tests.bench.transfers import (
    MOST_MEMORY_MIB,
    Bench,
    allocation_of,
    alone,
    client,
    cpu_s,
    empty,
    loop_device,
    make_disk,
    natively,
    peak_mib,
    seconds,
    served,
    turns,
)
from tests.support.object_store import BUCKET, Server

_KEY = "export.qcow2"

_TEXT = (
    "As *transfers*: an export of 512 MiB on a disk of 16 GiB is imported to a file. Beside it are"
    " a download with minio-py's `fget_object`, that and `qemu-img convert -n --target-is-zero`,"
    " and a download by blockd's client in ranges of 4 MiB. blockd's import also reads back what it"
    " wrote and compares the digest, which nothing by hand does. *Far* is a process in between that"
    " passes on what is asked 50 ms later."
)


def section(*, quick: bool) -> Section:
    """The tables."""
    return natively("imports", partial(_measure, 2 if quick else 7))


async def _measure(rounds: int) -> str:
    async with served() as (server, bench):
        disk = bench.folder / "disk"
        make_disk(disk, 16 * GIB)
        allocation = allocation_of(disk)
        with loop_device(disk) as device:
            await bench.export(device, allocation, _KEY)
        disk.unlink()
        image = await bench.images.look(BUCKET, _KEY)
        imports = await _imports(bench, server, image, rounds)
        target = bench.folder / "target"
        empty(target, image.virtual_size_bytes)
        floor = await import_floor(server, image, target, allocation)
        memory, used_s = alone("tests.bench.imports", server.url, bench.folder)
    head = ("what", "peak memory, MiB", "goal, at most", "CPU s per GiB")
    told = table(head, [("import", memory, MOST_MEMORY_MIB, used_s)])
    return f"{_TEXT}\n\n{imports}\n\n{floor}\n\n{told}"


async def _imports(bench: Bench, server: Server, image: ImageFacts, rounds: int) -> str:
    target, scratch = bench.folder / "target", bench.folder / "scratch.qcow2"

    async def by_hand() -> None:
        await bench.fetch(image, scratch)
        empty(target, image.virtual_size_bytes)
        await _run(
            *("qemu-img", "convert", "-n", "--target-is-zero", "-f", "qcow2", "-O", "raw"),
            *(scratch, target),
        )

    timed = await turns(
        {
            "blockd": lambda: bench.restore(image, target),
            "download, convert": by_hand,
            "download": lambda: bench.fetch(image, scratch),
            "download in ranges": lambda: bench.download(image, scratch),
        },
        rounds,
    )
    with far(server.port) as port:
        async with client(f"http://127.0.0.1:{port}", bench.folder) as distant:
            timed |= await turns(
                {
                    "blockd, far": lambda: distant.restore(image, target),
                    "download, far": lambda: distant.fetch(image, scratch),
                    "download in ranges, far": lambda: distant.download(image, scratch),
                },
                rounds,
            )
    rows = [
        ("download, convert", "blockd", "0.7"),
        ("download", "blockd", "1.15"),
        ("download in ranges", "blockd", "1.15"),
        ("download, far", "blockd, far", "1.3"),
        ("download in ranges, far", "blockd, far", "1.3"),
    ]
    told = [
        (n, seconds(timed[n]), seconds(timed[b]), ratio(timed[b], timed[n]), g) for n, b, g in rows
    ]
    return table(("import: beside", "s", "blockd, s", "times", "goal, at most"), told)


async def _alone(url: str, folder: Path) -> None:
    async with client(url, folder) as bench:
        image = await bench.images.look(BUCKET, _KEY)
        began = cpu_s()
        await bench.restore(image, folder / "target")
    print(peak_mib(), (cpu_s() - began) / (image.object_bytes / GIB))


async def _run(*argv: object) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, argv))
    assert await process.wait() == 0


if __name__ == "__main__":
    asyncio.run(_alone(sys.argv[1], Path(sys.argv[2])))
