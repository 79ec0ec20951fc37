"""What an import costs at least: processor time of the parts that none can do without.

Each part is done alone, by a program in C where there is one: the server answers, bytes are
received, qemu-img converts between two sockets (its source is no file, and it shall not see the
disk), and the disk is read back and hashed (a client cannot know otherwise what is on it).
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

from minio import Minio

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.transfer import ImageFacts
from blockd.domain.units import MIB
from blockd.transfer.digest import cluster_sums
from tests.bench.report import table
from tests.support.object_store import ACCESS_KEY, SECRET_KEY, Server

_PIECE_BYTES = 2 * MIB


async def import_floor(
    server: Server, image: ImageFacts, local: Path, target: Path, allocation: Allocation
) -> str:
    """The parts as a table, and the seconds that all of them take on two processors at best.

    Args:
        local: a copy of the object.
        target: an empty disk.
        allocation: what will hold data on it.
    """
    served, received = await asyncio.to_thread(_receive, server, image)
    converted = await _convert(local, target)
    hashed = await asyncio.to_thread(_read_back, target, allocation)
    rows: Sequence[tuple[str, float]] = (
        ("the server answers one GET", served),
        ("its answer is received (`recv` into one buffer)", received),
        ("`qemu-img convert` between two `qemu-nbd` over sockets, these included", converted),
        ("the disk is read and hashed (SHA-256)", hashed),
    )
    least_s = sum(seconds for _, seconds in rows) / 2
    told = [(what, f"{seconds:.2f}") for what, seconds in rows]
    told.append(("together, on two processors, without a pause: seconds", f"{least_s:.2f}"))
    return table(("import: what none can do without", "CPU s"), told)


def _receive(server: Server, image: ImageFacts) -> tuple[float, float]:
    buffer = memoryview(bytearray(_PIECE_BYTES))
    # Signed by minio-py, received without a library.
    place = f"127.0.0.1:{server.port}"
    client = Minio(place, ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1")
    url = client.presigned_get_object(image.bucket, image.key).partition(place)[2]
    began, mine = _cpu_of(server.pid), _cpu_s()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        request = f"GET {url} HTTP/1.0\r\nHost: {place}\r\n\r\n"
        connection.sendall(request.encode())
        received = 0
        while count := connection.recv_into(buffer):
            received += count
    assert received > image.object_bytes
    return _cpu_of(server.pid) - began, _cpu_s() - mine


async def _convert(local: Path, target: Path) -> float:
    began = _cpu_s()
    ends = [target.with_suffix(f".{number}.sock") for number in range(2)]
    servers = [
        await asyncio.create_subprocess_exec(
            *("qemu-nbd", "--format", "raw", "--socket", str(end), *options, str(path))
        )
        for end, options, path in zip(ends, (("--read-only",), ()), (local, target), strict=True)
    ]
    async with asyncio.timeout(30):
        while not all(end.exists() for end in ends):
            await asyncio.sleep(0.01)
    source, sink = (f"file.driver=nbd,file.server.type=unix,file.server.path={end}" for end in ends)
    convert = await asyncio.create_subprocess_exec(
        *("qemu-img", "convert", "-n", "--target-is-zero", "-t", "none"),
        *("--image-opts", "--target-image-opts", f"driver=qcow2,{source}", f"driver=raw,{sink}"),
    )
    assert [await one.wait() for one in (convert, *servers)] == [0, 0, 0]
    return _cpu_s() - began


def _read_back(target: Path, allocation: Allocation) -> float:
    began = _cpu_s()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with target.open("rb", buffering=0) as file:
        for first, count in allocation.runs():
            end = (first + count) * CLUSTER_BYTES
            for offset in range(first * CLUSTER_BYTES, end, _PIECE_BYTES):
                piece = buffer[: min(_PIECE_BYTES, end - offset)]
                assert os.preadv(file.fileno(), [piece], offset) == len(piece)
                cluster_sums(piece)
    return _cpu_s() - began


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
