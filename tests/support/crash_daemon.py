"""The daemon, dying at a chosen side effect.

    python -m tests.support.crash_daemon --config FILE [--record FILE] [--at N --how kill|power]

Counting begins at SIGUSR1. Every side effect is two or three events: `before …`, for a process
`started …`, and `after …`. They are written to `--record`, one a line; at event number N (from 0)
the daemon is killed as by kill -9, or the whole guest as by pulling its plug.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import threading
from pathlib import Path

from blockd.config import read_config
from blockd.daemon import run
from blockd.domain.effects import SideEffects
from blockd.logs import set_up_logs


class Crash(SideEffects):
    """Counts events in all threads, once armed."""

    def __init__(self, at: int | None, how: str, record: Path | None) -> None:
        self._at, self._how, self._record = at, how, record
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
            number, self._count = self._count, self._count + 1
            if self._record is not None:
                with self._record.open("a", encoding="utf-8") as file:
                    file.write(f"{event}\n")
            if number == self._at:
                self._die()

    def _die(self) -> None:
        if self._how == "power":
            Path("/proc/sysrq-trigger").write_text("c", encoding="ascii")
        os.kill(os.getpid(), signal.SIGKILL)


async def _main(config_path: Path, crash: Crash) -> None:
    config = read_config(config_path)
    set_up_logs("debug", "json")
    armed = config.api.socket.with_name("armed")
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, crash.arm, armed)
    await run(config, crash)


def main() -> None:
    """Run the daemon."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--at", type=int)
    parser.add_argument("--how", choices=("kill", "power"), default="kill")
    options = parser.parse_args()
    asyncio.run(_main(options.config, Crash(options.at, options.how, options.record)))


if __name__ == "__main__":
    main()
