"""What `tests.support.daemon` forks: the daemon, dying at a chosen side effect, and make-pool.

Importing all of it is most of a start in the lab.

Counting begins at SIGUSR1. Every side effect is two or three events: `before …`, for a process
`started …`, and `after …`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from blockd.config import read_config
from blockd.daemon import make_pools, run
from blockd.domain.effects import SideEffects
from blockd.domain.errors import BlockdError
from blockd.logs import set_up_logs


@dataclass(frozen=True)
class Death:
    """When and how to die.

    Attributes:
        record: where each event is written, one a line.
        at: the number of the event at which to die, from 0; None: not at all.
        event: only those with this name count; empty: all of them.
        how: `kill` as by kill -9, or `power`: the whole guest, as by pulling its plug.
    """

    record: Path | None = None
    at: int | None = None
    event: str = ""
    how: str = "kill"


class Crash(SideEffects):
    """Counts events in all threads, once armed."""

    def __init__(self, death: Death) -> None:
        self._death = death
        self._armed, self._count, self._lock = False, 0, threading.Lock()

    def arm(self, armed: Path) -> None:
        """Begin to count, and tell the test by opening its FIFO."""
        self._armed = True
        with armed.open("wb") as fifo:
            fifo.write(b"armed\n")

    def before(self, name: str) -> None:
        self._happened(f"before {name}")

    def started(self, name: str) -> None:
        self._happened(f"started {name}")

    def after(self, name: str) -> None:
        self._happened(f"after {name}")

    def _happened(self, event: str) -> None:
        # Copies of the catalog come when they come: events counted from them would never be the
        # same twice. A write that is cut short has its tests in tests/unit/test_catalog_copy.py.
        if not self._armed or event.endswith(" copy write"):
            return
        with self._lock:
            if self._death.record is not None:
                with self._death.record.open("a", encoding="utf-8") as file:
                    file.write(f"{event}\n")
            if self._death.event not in ("", event):
                return
            number, self._count = self._count, self._count + 1
            if number == self._death.at:
                self._die()

    def _die(self) -> None:
        if self._death.how == "power":
            Path("/proc/sysrq-trigger").write_text("c", encoding="ascii")
        os.kill(os.getpid(), signal.SIGKILL)


async def _main(config_path: Path, crash: Crash) -> None:
    config = read_config(config_path)
    set_up_logs("debug", "json")
    armed = config.api.socket.with_name("armed")
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, crash.arm, armed)
    await run(config, crash)


def run_daemon(config: Path, log: Path, notify_socket: Path, death: Death) -> None:
    """Serve; `log` gets what the daemon writes to standard error."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - pytest may have its own
    os.environ["NOTIFY_SOCKET"] = str(notify_socket)
    asyncio.run(_main(config, Crash(death)))


def make_pool(config: Path, said: Path) -> None:
    """As `blockd make-pool`; what it says is in the file `said`, and an error ends it with 2."""
    try:
        said.write_text(asyncio.run(make_pools(read_config(config), None, [])))
    except (BlockdError, ExceptionGroup) as err:
        fault = err.exceptions[0] if isinstance(err, ExceptionGroup) else err
        said.write_text(f"blockd: {fault}")
        raise SystemExit(2) from err
