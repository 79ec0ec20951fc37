"""A way to a server that takes 50 ms longer: what is asked comes later, what is answered does not.

A process of its own that moves answers without looking at them (`splice`), so that it is the wait
that is measured, and little else: `python -m tests.bench.far PORT` prints the port it listens on.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LATENCY_S = 0.05
_AT_ONCE_BYTES = 1024**2


@contextmanager
def far(port: int) -> Iterator[int]:
    """The port of a way to `port` of this host, for the length of the block."""
    argv = [sys.executable, "-m", "tests.bench.far", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _serve(port: int) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        client, _ = listening.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for work, source, target in ((_ask, client, server), (_answer, server, client)):
            threading.Thread(target=work, args=(source, target), daemon=True).start()


def _ask(client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while data := client.recv(_AT_ONCE_BYTES):
            time.sleep(LATENCY_S)
            server.sendall(data)
    with suppress(OSError):
        server.shutdown(socket.SHUT_WR)


def _answer(server: socket.socket, client: socket.socket) -> None:
    out, into = os.pipe()
    with suppress(OSError):
        while count := os.splice(server.fileno(), into, _AT_ONCE_BYTES):
            while count:
                count -= os.splice(out, client.fileno(), count)
    with suppress(OSError):
        client.shutdown(socket.SHUT_WR)
    os.close(out)
    os.close(into)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
