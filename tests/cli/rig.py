"""Ways to run `blockctl`: inside this process, as a process, and on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockd.cli.app import run

ARGV = (sys.executable, "-c", "from blockd.cli.main import main; main()")


@dataclass(frozen=True)
class Ran:
    """How a run ended. On a terminal `out` holds both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be JSON and nothing else."""
        return json.loads(self.out)

    @property
    def id(self) -> str:
        """stdout, which must be one id."""
        assert len(self.out) == 37, self
        return self.out.strip()

    def failed(self, code: int) -> str:
        """The one line on stderr of a run that must have failed so."""
        assert self.code == code, self
        assert self.err.startswith("blockctl: "), self
        assert self.err.count("\n") == 1, self
        return self.err.removeprefix("blockctl: ").rstrip("\n")


@dataclass(frozen=True)
class Cli:
    """`blockctl` for one socket."""

    socket: Path

    async def __call__(self, *argv: str) -> Ran:
        """Run in a thread of this process, which takes milliseconds."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = await asyncio.to_thread(run, ["--socket", str(self.socket), *argv])
        return Ran(code, out.getvalue(), err.getvalue())

    async def ok(self, *argv: str) -> Ran:
        """Run what must work without a word on stderr."""
        ran = await self(*argv)
        assert ran.code == 0, ran
        assert ran.err == "", ran
        return ran

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """For a process of its own."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm-256color",
            "BLOCKD_SOCKET": str(self.socket),
            **(more or {}),
        }

    async def start(self, *argv: str, stdout: int = asyncio.subprocess.PIPE) -> Any:
        """A process of its own."""
        return await asyncio.create_subprocess_exec(
            *ARGV,
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(),
            # A shell that runs the tests in the background has Ctrl-C ignored, and so have they.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    async def on_terminal(
        self,
        *argv: str,
        typed: bytes = b"",
        columns: int = 80,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run with all three streams on a terminal."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        try:
            process = await asyncio.create_subprocess_exec(
                *ARGV,
                *argv,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env=self.environment(env),
            )
        finally:
            os.close(theirs)
        os.write(ours, typed)
        out = await asyncio.to_thread(_read_all, ours)
        return Ran(await process.wait(), out.decode().replace("\r\n", "\n"), "")


def _read_all(descriptor: int) -> bytes:
    data = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(descriptor, 65536):
            data += chunk
    os.close(descriptor)
    return data


@asynccontextmanager
async def strange_server(
    path: Path, answer: Callable[[bytes], bytes | None]
) -> AsyncIterator[list[bytes]]:
    """A server that answers requests with raw bytes, None for none at all; yields what it got."""
    requests: list[bytes] = []
    asleep = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            requests.append(head)
            data = answer(head)
            if data is None:
                await asleep.wait()
            else:
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield requests
    finally:
        asleep.set()
        server.close()


def http(status: int, body: object) -> bytes:
    """An answer as bytes."""
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        status,
        len(data),
        data,
    )
