"""The guest's processes: starting them, and waiting for all of them at once.

Loaded by lab-guest, at each boot: it imports little.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import time
from collections.abc import Callable


def spawn(argv: list[str], env: dict[str, str], files: tuple[int, int, int], cwd: str = "/") -> int:
    """Start a program in a session of its own; answers its process id.

    A program that cannot be started ends with 127 (not found) or 126, as from a shell, and says
    why on its standard error.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        # Away from 0 to 2 first: no source is overwritten before it is used.
        for number, file in enumerate([fcntl.fcntl(file, fcntl.F_DUPFD, 3) for file in files]):
            os.dup2(file, number)
            os.close(file)
        if os.isatty(0):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chdir(cwd)
        for number in (signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(argv[0], argv, env)
    except OSError as err:
        os.write(2, os.fsencode(f"lab: {argv[0]}: {err.strerror}\n"))
        os._exit(127 if err.errno == errno.ENOENT else 126)
    finally:
        os._exit(126)


class Loop:
    """Waits for everything at once: ended children, output to pass on, messages.

    `ended` holds exit statuses by process id, 128 and more for signals. The first process inherits
    every orphan, so all children are reaped, known or not.
    """

    def __init__(self) -> None:
        self.ended: dict[int, int] = {}
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}
        wake, writer = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.watch(wake, lambda: os.read(wake, 4096))

    def watch(self, file: int, handler: Callable[[], object]) -> None:
        """Call handler whenever file can be read."""
        self._handlers[file] = handler
        self._poll.register(file, select.POLLIN)

    def pipe_to(self, target: int) -> int:
        """The writing end of a new pipe whose bytes go to target until its last writer closes."""
        reader, writer = os.pipe()

        def move() -> None:
            chunk = memoryview(os.read(reader, 1 << 16))
            if not chunk:
                self._poll.unregister(reader)
                del self._handlers[reader]
                os.close(reader)
            while chunk:
                chunk = chunk[os.write(target, chunk) :]

        self.watch(reader, move)
        return writer

    def turn(self, timeout_s: float | None) -> bool:
        """Wait for something and see to it; False: nothing came in time."""
        ready = self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        for file, _ in ready:
            self._handlers[file]()
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(found[1])
                self.ended[found[0]] = code if code >= 0 else 128 - code
        return bool(ready)

    def until(self, done: Callable[[], bool], timeout_s: float, poll_s: float = 60.0) -> bool:
        """Turn until done() holds, asked again after each event or poll_s; False: not in time."""
        deadline = time.monotonic() + timeout_s
        while not done():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self.turn(min(left_s, poll_s))
        return True

    def status(self, pid: int) -> int:
        """Wait for a child, however long it takes, then pass on what output is left of it."""
        while pid not in self.ended:
            self.turn(None)
        # As much as a pipe can hold (1 MiB, 64 KiB a turn): a child left behind may write for ever.
        for _ in range(16):
            if not self.turn(0):
                break
        return self.ended[pid]
