"""The only place that starts processes. No shell, C locale, no inherited descriptors.

Output goes to memory files and the end is awaited on a pidfd: no pipe can fill, no thread waits,
and a child that is left alone (see `Child.wait`) does not block on a reader that went away.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from blockd.domain.errors import StartError, StorageError

#: Errors of who has no descriptor, process or memory left, and may have later.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})

_TERM_S = 5.0
_LEAVE_S = 1.0
_MOST_COMPLAINT_BYTES = 64 * 1024
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Output:
    """How a process ended; `returncode` is negative for a signal."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Child:
    """A running process that may outlive the wish to wait for it."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        descriptors: Sequence[int] = (),
        *,
        stdin: int | None = None,
    ) -> None:
        """Start `argv` (absolute path first) in a session of its own, with just `env`.

        Args:
            descriptors: are inherited, under the same numbers.
            stdin: a descriptor that becomes its standard input, and is held by it; None: empty.

        Raises:
            OSError: it cannot be started.
        """
        self.argv = tuple(argv)
        self._stdout = os.memfd_create("stdout", os.MFD_CLOEXEC)
        try:
            self._stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        except OSError:
            os.close(self._stdout)
            raise
        try:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=self._stdout,
                stderr=self._stderr,
                env={"LC_ALL": "C", "PATH": _SEARCH_PATH, **env},
                cwd="/",
                pass_fds=descriptors,
                start_new_session=True,  # a Ctrl-C at the daemon's terminal is not for the child
            )
        except BaseException:
            os.close(self._stdout)
            os.close(self._stderr)
            raise
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Output] = loop.create_future()
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:  # no descriptor left: it runs all the same, and its end must be known
            self._waiter = loop.run_in_executor(None, self._process.wait)
            self._waiter.add_done_callback(lambda _: self._collect())
        else:
            loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._collect()

    def _collect(self) -> None:
        output = Output(self._process.wait(), _content(self._stdout), _content(self._stderr))
        if not self._end.done():
            self._end.set_result(output)

    async def wait(self, timeout_s: float | None) -> Output:
        """Its output, once it has ended. Leaving early (deadline, cancellation) does not touch it.

        Raises:
            TimeoutError: it still runs.
        """
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self._end)

    async def end(self) -> None:
        """See that it is gone: TERM, and KILL after 5 s. Not for LVM, which is never signalled."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.has_ended:
                self._process.send_signal(number)
            try:
                await self.wait(_TERM_S)
            except TimeoutError:
                continue
            return

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether `wait` would answer at once."""
        return self._end.done()


@asynccontextmanager
async def running(
    argv: Sequence[str], env: Mapping[str, str], descriptors: Sequence[int] = ()
) -> AsyncIterator[Child]:
    """A `Child` that does not outlive the block."""
    child = Child(argv, env, descriptors)
    try:
        yield child
    finally:
        await asyncio.shield(child.end())


@asynccontextmanager
async def lines_of(argv: Sequence[str], *, silence_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
    """The lines of a program's standard output as they come; memory holds one of them.

    Leaving the block early ends the program.

    Raises:
        CommandFailed: it ended with another status than 0, after its last line.
        TimeoutError: it said nothing for `silence_s`.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C", "PATH": _SEARCH_PATH},
        cwd="/",
        start_new_session=True,
    )
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("no pipes")
    complaints = asyncio.create_task(_last_of(process.stderr))

    async def lines(output: asyncio.StreamReader) -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(silence_s):
                line = await output.readline()
            if not line:
                break
            yield line
        async with asyncio.timeout(silence_s):
            if await process.wait() != 0:
                raise CommandFailed(argv[0], process.returncode or 0, await complaints)

    try:
        yield lines(process.stdout)
    finally:
        complaints.cancel()
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())


async def _last_of(stream: asyncio.StreamReader) -> bytes:
    """All is read, so that no pipe fills; the end of it is what says why a program failed."""
    kept = b""
    while said := await stream.read(_MOST_COMPLAINT_BYTES):
        kept = (kept + said)[-_MOST_COMPLAINT_BYTES:]
    return kept


class CommandFailed(StorageError):
    """A program ended with another status than 0."""

    def __init__(self, program: str, returncode: int, stderr: bytes) -> None:
        told = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
        last = next((line for line in reversed(told) if line), "")
        how = f"signal {-returncode}" if returncode < 0 else f"status {returncode}"
        super().__init__(f"{Path(program).name} ended with {how}: {last or 'no word'}")
        self.returncode = returncode


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


class Companion:
    """A watchdog process: does a thing at a deadline unless it is told in time that it need not.

    Told on its stdin, line by line, `arm SECONDS WHAT` and `disarm WHAT`. When stdin ends, because
    the daemon ended however it did, it does at once all that is armed, and then ends.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)
        self._process: subprocess.Popen[bytes] | None = None
        self._stdin: IO[bytes] | None = None
        self._due: dict[str, float] = {}

    def arm(self, what: str, within_s: float) -> None:
        """Have `what` done in so many seconds; it is in the pipe when this returns.

        Raises:
            OSError: the process is gone, and so is the next one: nobody will do it.
        """
        self._due[what] = time.monotonic() + within_s
        try:
            self._tell(f"arm {within_s} {what}")
        except OSError:
            del self._due[what]
            raise

    def disarm(self, what: str) -> None:
        """It need not be done any more. Raises OSError as `arm`."""
        self._due.pop(what, None)
        self._tell(f"disarm {what}")

    def _tell(self, line: str) -> None:
        try:
            self._write(line)
        except OSError:  # it died, and is replaced: by one that knows all that is armed
            self._leave()
            self._start()
            for what, due in self._due.items():
                self._write(f"arm {max(due - time.monotonic(), 0)} {what}")

    def _write(self, line: str) -> None:
        if self._stdin is None:
            raise BrokenPipeError(f"{self._argv[0]} is not running")
        self._stdin.write(line.encode() + b"\n")
        self._stdin.flush()

    @property
    def pid(self) -> int | None:
        """The process id while it is told things."""
        return None if self._process is None else self._process.pid

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={"LC_ALL": "C", "PATH": _SEARCH_PATH},
            cwd="/",
            start_new_session=True,
        )
        self._stdin = self._process.stdin

    def _leave(self) -> subprocess.Popen[bytes] | None:
        """Close its stdin, and let it do what is left."""
        process, stdin = self._process, self._stdin
        self._process = self._stdin = None
        if stdin is not None:
            with suppress(OSError):
                stdin.close()
        if process is not None and process.poll() is None:  # somebody has to know of its end
            # No thread to be had just now: it is a zombie until the next process is started.
            with suppress(RuntimeError):
                threading.Thread(target=process.wait, name="companion", daemon=True).start()
        return process

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """It is never killed: what it still has to do is what it is there for."""
        process = self._leave()
        until = time.monotonic() + _LEAVE_S
        while process is not None and process.poll() is None:
            if time.monotonic() > until:
                return
            await asyncio.sleep(_LEAVE_S / 100)


def find_tool(name: str, package: str) -> str:
    """The absolute path of a program.

    Raises:
        StartError: it is not installed; names the Debian package.
    """
    path = shutil.which(name, path=_SEARCH_PATH)
    if path is None:
        raise StartError(f"{name} is not installed: apt-get install {package}")
    return path


async def wait_for_survivors(marker: str, timeout_s: float) -> None:
    """Wait until no process has `marker` (`NAME=value`) in its environment.

    An LVM command outlives the daemon that started it; nothing may be done to its volume group
    before it has ended.

    Raises:
        StartError: one still runs at the deadline.
    """
    wanted = marker.encode()
    async with asyncio.TaskGroup() as group:
        for entry in Path("/proc").iterdir():  # noqa: ASYNC240
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    pidfd = os.pidfd_open(int(entry.name)) if wanted in environment else None
                except OSError:
                    continue  # it ended, or is a kernel thread
                if pidfd is not None:
                    group.create_task(_wait_for_end(pidfd, int(entry.name), timeout_s))


async def _wait_for_end(pidfd: int, pid: int, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    except TimeoutError:
        raise StartError(
            f"an LVM command of an earlier blockd still runs (pid {pid}): wait for it to end"
        ) from None
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
