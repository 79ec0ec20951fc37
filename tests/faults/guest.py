"""Runs a module in a guest of the lab, from the host."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What scripts/lab ends with when the guest died.
POWER_CUT = 75
_END_S = 30.0
_SHOWN = 6000


class Guests:
    """Guests on the disks of one folder, one after the other.

    What a guest prints is in `guest.log` there; what earlier ones printed is gone.
    """

    def __init__(self, folder: Path, cpu: int | None = None) -> None:
        self.folder = folder
        self._cpu = () if cpu is None else ("--cpu", str(cpu))
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def run(self, disks: Sequence[str], module: Sequence[str], limit_s: float) -> tuple[int, str]:
        """How it ended (as scripts/lab says; -15: it took too long), and what it said last.

        Args:
            disks: sizes, of those that are not there yet.
            module: its name and arguments.

        Raises:
            InterruptedError: `stop` was called.
        """
        if self._is_stopped:
            raise InterruptedError("stopped")
        sizes = [word for size in disks for word in ("--disk", size)]
        argv = [
            *(str(ROOT / "scripts/lab"), *self._cpu, *sizes, "--disk-dir", str(self.folder)),
            *("--", ".venv/bin/python", "-m", *module),
        ]
        said = self.folder / "guest.log"
        with said.open("wb") as log:
            self._process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                status = self._process.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = -signal.SIGTERM
            finally:
                self._end()
        if self._is_stopped:
            raise InterruptedError("stopped")
        return status, said.read_text("utf-8", "replace")[-_SHOWN:]

    def stop(self) -> None:
        """End the guest that runs, if one does, from any thread; there will be no other."""
        self._is_stopped = True
        self._end()

    def _end(self) -> None:
        """lab takes its guest with it."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait(_END_S)
