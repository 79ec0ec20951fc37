"""Listening, on the Unix socket and on TCP: own the listener, answer, leave in order."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from aiohttp import web

from blockd.api.protocol import JsonProtocol
from blockd.domain.errors import StartError

log = structlog.get_logger()

#: A hundred tags or ids fit into a query string.
_MAX_LINE_BYTES = 64 * 1024

_KEPT_DESCRIPTORS = 256


@asynccontextmanager
async def serve_unix(
    app: web.Application,
    where: Path | int,
    *,
    mode: int = 0o660,
    gid: int | None = None,
    close_within_s: float = 10.0,
) -> AsyncIterator[None]:
    """Answer requests on a Unix socket for as long as the block runs.

    On leaving: nobody new is let in, idle connections are closed, running requests may end.

    Args:
        where: a path to make the socket at, or an inherited listening descriptor (systemd's
            socket activation), which is closed at the end but never unlinked.
        mode, gid: permissions of the socket at a path, in force before anybody can connect.
        close_within_s: what running requests get to end; then they are cancelled.

    Raises:
        StartError: somebody else listens there, or it is no socket, or not permitted.
    """
    listener = _inherited(where) if isinstance(where, int) else _bound(where, mode, gid)
    try:
        async with _serving(app, listener, None, close_within_s):
            log.info("listening", socket=str(where))
            try:
                yield
            finally:
                # First the file: while we listen, no other daemon takes its place.
                if isinstance(where, Path):
                    where.unlink(missing_ok=True)  # noqa: ASYNC240
    finally:
        listener.close()


@asynccontextmanager
async def serve_tcp(
    app: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext,
    *,
    close_within_s: float = 10.0,
) -> AsyncIterator[int]:
    """Answer requests over TLS for as long as the block runs; yields the port (for port 0).

    Raises:
        StartError: the address cannot be had.
    """
    try:
        listener = socket.create_server((host, port), backlog=128)
    except OSError as err:
        raise StartError(f"cannot listen on {host}:{port}: {err.strerror or err}") from err
    with listener:
        async with _serving(app, listener, tls, close_within_s):
            bound: int = listener.getsockname()[1]
            log.info("listening", host=host, port=bound)
            yield bound


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and newer with this certificate chain (PEM) and key (PEM).

    Raises:
        StartError: they cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as err:
        raise StartError(f"certificate {certificate} and key {key}: {err}") from err
    return context


def most_connections() -> int:
    """How many clients each listener answers at once.

    What storage needs must not wait for them: without descriptors no command can be started.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limit - _KEPT_DESCRIPTORS, limit // 4)


class _Refused(asyncio.Protocol):
    """A connection too many: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        log.warning("too many connections")
        transport.close()


@asynccontextmanager
async def _serving(
    app: web.Application,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    close_within_s: float,
) -> AsyncIterator[None]:
    """Answer what connects to `listener`, which stays the caller's."""
    runner = web.AppRunner(
        app,
        # A client that leaves must not cancel the change that it asked for: half-made, it
        # would wait for the next start to be undone. This is aiohttp's default; keep it.
        handler_cancellation=False,
        # aiohttp waits this long for the handler, then once more for its connection.
        shutdown_timeout=close_within_s / 2,
    )
    server: asyncio.AbstractServer | None = None
    try:
        await runner.setup()
        loop = asyncio.get_running_loop()
        manager, most = runner.server, most_connections()
        if manager is None:
            raise StartError("the HTTP server did not start")

        def connection() -> asyncio.Protocol:
            if len(manager.connections) >= most:
                return _Refused()
            # `access_log` off: the middleware writes the one event per request.
            return JsonProtocol(
                manager,
                loop=loop,
                access_log=None,
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_LINE_BYTES,
            )

        if tls is None:
            server = await loop.create_unix_server(connection, sock=listener, backlog=128)
        else:
            server = await loop.create_server(connection, sock=listener, ssl=tls, backlog=128)
        yield
    finally:
        if server is not None:
            server.close()
        await runner.cleanup()


def _bound(path: Path, mode: int, gid: int | None) -> socket.socket:
    """A socket at `path`, with its permissions, not listening yet: nobody can connect."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
    except OSError as err:
        sock.close()
        raise StartError(f"cannot make the socket {path}: {err.strerror or err}") from err
    sock.setblocking(False)
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket file that a killed daemon left; one that answers is somebody's."""
    try:
        kind = path.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise StartError(f"{path} exists and is no socket: remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full backlog blocks a connect: that, too, is somebody who listens.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as err:
            raise StartError(f"cannot tell who listens on {path}: {err.strerror}") from err
    raise StartError(f"another process listens on {path}: is blockd running already?")


def _inherited(descriptor: int) -> socket.socket:
    """The listening Unix socket that a service manager passed as `descriptor`."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as err:
        raise StartError(f"descriptor {descriptor} is no socket: {err.strerror}") from err
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise StartError(f"descriptor {descriptor} is no Unix stream socket")
    sock.setblocking(False)
    return sock
