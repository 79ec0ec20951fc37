"""A daemon with a thin and a thick class, each on a disk of its own, in a guest with two."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.client import DEADLINE_S, Connection

#: By class: the disk of its volume group, in /dev and in /sys/block.
DISKS = {"sbs": "ubda", "bssd": "ubdb"}
_THICK = '[classes.bssd]\nkind = "thick"\nvg = "lab-thick"\nmax_snapshots = 8\n'


@contextmanager
def both_classes() -> Iterator[Connection]:
    """A daemon in place of the lab's, which knows the first class alone.

    Raises:
        RuntimeError: it does not start; with its log.
    """
    _end(int(Path(os.environ["BLOCKD_PIDFILE"]).read_text("utf-8")))
    config = Path(os.environ["BLOCKD_CONFIG"])
    thin, thick = (f"/dev/{disk}" for disk in DISKS.values())
    text = config.read_text("utf-8").replace(f'["{thin}"]', f'["{thin}", "{thick}"]')
    config.write_text(f"{text}\n{_THICK}", "utf-8")
    options = ("--config", str(config))
    make = ("blockd", "make-pool", *options, "--class", "bssd", thick)
    subprocess.run(make, stdout=subprocess.DEVNULL, check=True)
    log = config.with_name("both-classes.log")
    with log.open("wb") as output, subprocess.Popen(["blockd", *options], stderr=output) as daemon:
        try:
            with Connection(Path(os.environ["BLOCKD_SOCKET"])) as connection:
                _await_answer(connection, daemon, log)
                yield connection
        finally:
            daemon.terminate()


def _end(pid: int) -> None:
    """Not a child of ours, so it cannot be waited for."""
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.02)


def _await_answer(connection: Connection, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            connection.call("GET", "/host/v1/health")
        except OSError:
            connection.close()
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text("utf-8")) from None
            time.sleep(0.05)
        else:
            return
