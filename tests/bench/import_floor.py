"""What an import costs at least: processor time of the parts that none can do without.

Each part is done alone, with nothing around it: the server answers, bytes are received, the disk is
written, read back and hashed (a client cannot know otherwise what is on it).
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from minio import Minio

from blockd.domain.allocation import CLUSTER_BYTES, Allocation
from blockd.domain.transfer import ImageFacts
from blockd.domain.units import MIB
from blockd.transfer.digest import cluster_sums
from tests.bench.report import table
from tests.support.object_store import ACCESS_KEY, SECRET_KEY, Server

_PIECE_BYTES, _GET_BYTES = 2 * MIB, 16 * MIB


async def import_floor(
    server: Server, image: ImageFacts, target: Path, allocation: Allocation
) -> str:
    """The parts as a table, and the seconds that all of them take on two processors at best.

    Args:
        target: an empty disk.
        allocation: what will hold data on it.
    """
    served, received = await asyncio.to_thread(_receive, server, image)
    written = await asyncio.to_thread(_write, target, allocation)
    hashed = await asyncio.to_thread(_read_back, target, allocation)
    rows: Sequence[tuple[str, float]] = (
        ("the server answers, GETs of 16 MiB one after another", served),
        ("its answers are received (`recv` into one buffer)", received),
        ("the disk is written", written),
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
    for begin in range(0, image.object_bytes, _GET_BYTES):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            wanted = f"bytes={begin}-{min(begin + _GET_BYTES, image.object_bytes) - 1}"
            request = f"GET {url} HTTP/1.0\r\nHost: {place}\r\nRange: {wanted}\r\n\r\n"
            connection.sendall(request.encode())
            received = 0
            while count := connection.recv_into(buffer):
                received += count
        assert received > min(_GET_BYTES, image.object_bytes - begin)
    return _cpu_of(server.pid) - began, _cpu_s() - mine


def _write(target: Path, allocation: Allocation) -> float:
    noise = memoryview(os.urandom(_PIECE_BYTES))
    began = _cpu_s()
    with target.open("r+b", buffering=0) as file:
        for offset, length in _pieces(allocation):
            assert os.pwrite(file.fileno(), noise[:length], offset) == length
    return _cpu_s() - began


def _read_back(target: Path, allocation: Allocation) -> float:
    began = _cpu_s()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with target.open("rb", buffering=0) as file:
        for offset, length in _pieces(allocation):
            assert os.preadv(file.fileno(), [buffer[:length]], offset) == length
            cluster_sums(buffer[:length])
    return _cpu_s() - began


def _pieces(allocation: Allocation) -> Iterator[tuple[int, int]]:
    for first, count in allocation.runs():
        end = (first + count) * CLUSTER_BYTES
        for offset in range(first * CLUSTER_BYTES, end, _PIECE_BYTES):
            yield offset, min(_PIECE_BYTES, end - offset)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
