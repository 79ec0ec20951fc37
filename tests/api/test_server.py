"""Listening: permissions, stale sockets, inherited ones, and leaving in order."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from blockd.api import server
from blockd.api.server import serve_unix
from blockd.domain.errors import StartError
from tests.api.rig import exchange

PING = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def hello() -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/", answer)
    return app


async def test_socket_has_its_mode_and_group_before_anyone_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, at_chmod = tmp_path / "s", []
    real = os.chmod

    def chmod(target: Any, mode: int, **more: Any) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            at_chmod.append(probe.connect_ex(os.fspath(path)))
        real(target, mode, **more)

    monkeypatch.setattr(os, "chmod", chmod)
    async with serve_unix(hello(), path, gid=os.getgid()):
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == os.getgid()
    assert at_chmod
    assert 0 not in at_chmod


async def test_socket_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serve_unix(hello(), path):
        assert b"200 OK" in await exchange(path, PING)
    assert not path.exists()


async def test_clients_beyond_the_most_are_refused_until_others_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "most_connections", lambda: 2)
    path = tmp_path / "s"
    async with serve_unix(hello(), path), AsyncExitStack() as others:
        async with connected(path) as (reader, writer):
            other, _ = await others.enter_async_context(connected(path))
            writer.write(PING)
            assert b"200 OK" in await reader.readline()
            async with connected(path) as (refused, _):
                assert await refused.read() == b""
            assert not other.at_eof()

        async def is_let_in() -> bool:
            async with connected(path) as (reader, writer):
                with suppress(ConnectionError):
                    writer.write(PING)
                    return b"200 OK" in await reader.readline()
            return False

        async with asyncio.timeout(10):
            while not await is_let_in():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert path.is_socket()
    async with serve_unix(hello(), path):
        assert b"200 OK" in await exchange(path, PING)


async def test_socket_on_which_somebody_listens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serve_unix(hello(), path):
        with pytest.raises(StartError, match="another process listens"):
            async with serve_unix(hello(), path):
                pass
        assert b"200 OK" in await exchange(path, PING)


async def test_socket_whose_owner_is_too_busy_to_accept_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(os.fspath(path))
        busy.listen(0)
        waiting.connect(os.fspath(path))
        with pytest.raises(StartError):
            async with serve_unix(hello(), path):
                pass
    assert path.is_socket()


async def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StartError, match="is no socket"):
        async with serve_unix(hello(), path):
            pass
    assert path.read_text() == "precious"


async def test_symlink_to_a_file_is_not_followed(tmp_path: Path) -> None:
    path, target = tmp_path / "s", tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(StartError, match="is no socket"):
        async with serve_unix(hello(), path):
            pass
    assert target.read_text() == "precious"


async def test_directory_that_is_missing_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot make the socket"):
        async with serve_unix(hello(), tmp_path / "no" / "s"):
            pass


async def test_path_too_long_for_a_socket_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot make the socket"):
        async with serve_unix(hello(), tmp_path / ("x" * 200)):
            pass


async def test_inherited_socket_is_served_and_left_in_place(tmp_path: Path) -> None:
    path = tmp_path / "s"
    manager = socket.socket(socket.AF_UNIX)
    manager.bind(os.fspath(path))
    manager.listen()
    async with serve_unix(hello(), os.dup(manager.fileno())):
        assert b"200 OK" in await exchange(path, PING)
    assert path.is_socket()
    # The manager's own descriptor still listens: clients wait for the next daemon.
    _, waiting = await asyncio.open_unix_connection(path)
    waiting.close()
    manager.close()


async def test_inherited_descriptor_that_is_no_unix_socket_is_a_start_error() -> None:
    reader, writer = os.pipe()
    with socket.socket() as tcp:
        descriptor = os.dup(tcp.fileno())
    for wrong in (reader, descriptor):
        with pytest.raises(StartError, match="descriptor"):
            async with serve_unix(hello(), wrong):
                pass
    os.close(reader)
    os.close(writer)


def slow(entered: asyncio.Event, gate: asyncio.Event, ended: list[str]) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        entered.set()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("answered")
        return web.json_response({"done": True})

    app = web.Application()
    app.router.add_get("/", answer)
    return app


async def test_running_request_is_answered_though_we_stop(tmp_path: Path) -> None:
    path, ended = tmp_path / "s", list[str]()
    entered, gate, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        async with serve_unix(slow(entered, gate, ended), path):
            await leave.wait()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        serving = group.create_task(serve())
        while not path.exists():
            await asyncio.sleep(0)
        connector = aiohttp.UnixConnector(os.fspath(path))
        async with aiohttp.ClientSession(connector=connector) as session:
            asking = group.create_task(session.get("http://x/").__aenter__())
            await entered.wait()
            leave.set()
            while path.exists():
                await asyncio.sleep(0)
            with pytest.raises(OSError):  # noqa: PT011 - nobody new is let in
                await asyncio.open_unix_connection(path)
            await asyncio.sleep(0.1)  # far less than its deadline, and more than none
            assert not serving.done()
            gate.set()
            answer = await asking
            assert await answer.json() == {"done": True}
            answer.close()
    assert ended == ["answered"]


async def test_request_that_does_not_end_is_cancelled_at_the_deadline(tmp_path: Path) -> None:
    path, ended, entered = tmp_path / "s", list[str](), asyncio.Event()
    async with asyncio.timeout(10):
        async with serve_unix(slow(entered, asyncio.Event(), ended), path, close_within_s=0.2):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(PING)
            await entered.wait()
        writer.close()
    assert ended == ["cancelled"]


async def test_idle_connection_does_not_hold_up_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with asyncio.timeout(2):
        async with serve_unix(hello(), path, close_within_s=60):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(PING)
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
