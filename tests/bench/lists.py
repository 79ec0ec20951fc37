"""Part `lists`: what `GET …/snapshots` costs, in catalogs of 10, 100 and 10,000 snapshots."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.client import SNAPSHOTS, Connection
from tests.bench.guest import progress
from tests.bench.lists_daemon import TAG
from tests.bench.report import Section, percentile_ms, ratio, table
from tests.support.service import PROJECT

_COUNTS = (10, 100, 10_000)
#: What is asked: the query, and how many rows each catalog answers it with.
_QUERIES = {
    "first page": "page_size=100",
    "middle page": "page_size=100&page={middle}",
    "first page of 10": "page_size=10",
    "middle page of 10": "page_size=10&page={middle_of_10}",
    "project_id": f"page_size=100&project_id={PROJECT}",
    "order_by=name_asc": "page_size=100&order_by=name_asc",
    "tags": f"page_size=100&tags={TAG}",
    "name": "page_size=100&name=nightly-0000",
}
_AFTER_COMMIT = "first page of 10, after a commit"


class _Asker:
    """Sends one prepared request again and again; reads no more of an answer than it must."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(str(path))

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> tuple[float, bytes]:
        """Seconds from sending to the last byte of the answer, and its body."""
        began = time.perf_counter()
        self._socket.sendall(request)
        answer = self._socket.recv(1 << 18)
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._socket.recv(1 << 18)
        at = answer.index(b"Content-Length: ") + 16
        whole = end + 4 + int(answer[at : answer.index(b"\r", at)])
        while len(answer) < whole:
            answer += self._socket.recv(1 << 18)
        took_s = time.perf_counter() - began
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer.decode())
        return took_s, answer[end + 4 :]


def section(*, quick: bool) -> Section:
    """Start one daemon per catalog, ask them in turn, tabulate."""
    requests = 100 if quick else 2000
    rows: list[list[object]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        paths = [stack.enter_context(_daemon(folder / str(count), count)) for count in _COUNTS]
        askers = [stack.enter_context(contextlib.closing(_Asker(path))) for path in paths]
        for name, query in _QUERIES.items():
            progress(f"lists: {name}")
            rows.append(_row(name, *_measure(askers, query, requests)))
        progress(f"lists: {_AFTER_COMMIT}")
        connections = [stack.enter_context(Connection(path)) for path in paths]
        rows.append(_row(_AFTER_COMMIT, *_after_commits(askers, connections, requests // 4)))
    head = ["`GET …/snapshots`", *(f"rows of {count:,}" for count in _COUNTS)]
    head += [f"p50 (p99) of {count:,}, ms" for count in _COUNTS]
    head += ["10,000 / 10, p50", "10,000 / 100, p50"]
    text = (
        f"Milliseconds from sending a request to the last byte of its answer, {requests:,} requests"
        " per figure, one keep-alive connection per daemon, three daemons in processes of their own"
        " asked in turn. Rows are inserted into the catalog directly: ten volumes, a tenth of the"
        " snapshots in another project, a tenth with the tag. Ratios compare like with like only"
        " where the answers have as many rows. *After a commit*: before each request a snapshot"
        " was renamed, so that nothing remembered holds.\n\n"
    )
    return Section("lists", text + table(head, rows))


def _measure(
    askers: Sequence[_Asker], query: str, requests: int
) -> tuple[list[list[float]], list[int]]:
    prepared = [_request(query, count) for count in _COUNTS]
    returned = [
        asker.ask(request)[1].count(b'"created_at"')
        for asker, request in zip(askers, prepared, strict=True)
    ]
    samples: list[list[float]] = [[] for _ in _COUNTS]
    for _ in range(requests):
        for asker, request, times in zip(askers, prepared, samples, strict=True):
            times.append(asker.ask(request)[0])
    return samples, returned


def _after_commits(
    askers: Sequence[_Asker], connections: Sequence[Connection], requests: int
) -> tuple[list[list[float]], list[int]]:
    query = _QUERIES["first page of 10"]
    samples: list[list[float]] = [[] for _ in _COUNTS]
    ids = [
        connection.call("GET", f"{SNAPSHOTS}?page_size=1")["snapshots"][0]["id"]
        for connection in connections
    ]
    for number in range(requests):
        for index, count in enumerate(_COUNTS):
            change = {"name": f"renamed-{number}"}
            connections[index].call("PATCH", f"{SNAPSHOTS}/{ids[index]}", change)
            samples[index].append(askers[index].ask(_request(query, count))[0])
    return samples, [10] * len(_COUNTS)


def _request(query: str, count: int) -> bytes:
    """The request; the middle page of a catalog of one page is that page."""
    middle, middle_of_10 = max(count // 200, 1), max(count // 20, 1)
    query = query.format(middle=middle, middle_of_10=middle_of_10)
    return f"GET {SNAPSHOTS}?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _row(name: str, samples: list[list[float]], returned: list[int]) -> list[object]:
    cells = [
        f"{statistics.median(times) * 1000:.2f} ({percentile_ms(times, 99):.2f})"
        for times in samples
    ]
    ten, hundred, most = samples
    return [name, *returned, *cells, ratio(most, ten), ratio(most, hundred)]


@contextlib.contextmanager
def _daemon(root: Path, count: int) -> Iterator[Path]:
    """A daemon over a catalog of `count` snapshots; its socket."""
    root.mkdir()
    log = root / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.lists_daemon", str(root), str(count)],
            stdout=subprocess.PIPE,
            stderr=file,
        ) as process,
    ):
        try:
            if process.stdout is None or process.stdout.readline() != b"READY\n":
                raise RuntimeError(log.read_text("utf-8"))
            yield root / "blockd.sock"
        finally:
            process.terminate()
            process.wait(60)
