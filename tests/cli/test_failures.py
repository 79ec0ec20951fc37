"""Exit codes, names that do not fit, and the one line that a person gets."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from blockd.domain.errors import StorageError
from tests.api.rig import NOBODY, Rig
from tests.cli.rig import Cli, http, strange_server


async def test_unknown_name_and_unknown_id_end_with_3(cli: Cli) -> None:
    assert (await cli("volume", "show", "nope")).failed(3) == 'there is no volume "nope"'
    assert (await cli("volume", "show", NOBODY)).failed(3) == f"there is no volume {NOBODY}"
    assert (await cli("snapshot", "undelete", "nope")).failed(3).startswith("there is no deleted")


async def test_a_name_is_exact_though_the_filter_is_a_prefix(cli: Cli) -> None:
    for name in ("data-2", "data", "data2"):
        await cli.ok("volume", "create", name, "--size", "1M")
    assert (await cli.ok("volume", "show", "data", "--json")).json["name"] == "data"
    (await cli("volume", "show", "dat")).failed(3)
    (await cli("volume", "show", "")).failed(2)


async def test_an_ambiguous_name_lists_the_ids_and_each_id_works(cli: Cli) -> None:
    ids = [(await cli.ok("volume", "create", "twin", "--size", "1M", "-q")).id for _ in range(2)]
    told = (await cli("volume", "delete", "twin", "--yes")).failed(2)
    assert all(volume_id in told for volume_id in ids)
    await cli.ok("volume", "delete", ids[0].upper(), "--yes")
    assert (await cli.ok("volume", "show", "twin", "-q")).id == ids[1]


@pytest.mark.parametrize(
    "argv",
    [
        ("frob",),
        ("volume", "frob"),
        ("volume", "create"),
        ("volume", "create", "x", "--size", "12Q"),
        ("volume", "create", "x", "--size", "1M", "--iops", "1"),
        ("volume", "create", "x", "--size", "1M", "--timeout", "soon"),
        ("volume", "create", "x", "--size", "1M", "--class", "gold"),
        ("volume", "create", "", "--size", "1M"),
        ("volume", "create", "x", "--size", "1"),
        ("volume", "list", "--limit", "0"),
        ("volume", "list", "--sort", "size"),
        ("volume", "list", "--project", "me"),
        ("volume", "list", "--zone"),
        ("--nonsense",),
    ],
)
async def test_bad_arguments_end_with_2_and_one_line(cli: Cli, argv: tuple[str, ...]) -> None:
    (await cli(*argv)).failed(2)


async def test_no_such_zone_ends_with_3(cli: Cli) -> None:
    assert "there is no zone" in (await cli("volume", "list", "--zone", "yy-lab-9")).failed(3)


async def test_a_failed_create_ends_with_1_and_the_reason(cli: Cli, daemon: Rig) -> None:
    daemon.driver.fail_next["create"] = StorageError("lvcreate: I/O error")
    told = (await cli("volume", "create", "x", "--size", "1M")).failed(1)
    assert told == 'creating volume "x" failed: lvcreate: I/O error'
    assert "lvcreate: I/O error" in (await cli.ok("volume", "show", "x")).out


async def test_a_failed_grow_leaves_the_volume_available_and_ends_with_1(
    cli: Cli, daemon: Rig
) -> None:
    await cli.ok("volume", "create", "x", "--size", "1M")
    daemon.driver.fail_next["grow"] = StorageError("the VG is full")
    told = (await cli("volume", "grow", "x", "9M")).failed(1)
    assert told == 'growing volume "x" failed: the VG is full'
    assert (await cli.ok("volume", "show", "x", "--json")).json["status"] == "available"
    await cli.ok("volume", "grow", "x", "9M")


async def test_what_is_under_way_ends_with_5(cli: Cli, daemon: Rig) -> None:
    await cli.ok("volume", "create", "x", "--size", "1M")
    async with daemon.driver.turn():
        await cli.ok("volume", "grow", "x", "2M", "--no-wait")
        told = (await cli("volume", "delete", "x", "--yes")).failed(5)
    assert told == 'volume "x" is updating: try again when that has ended'


async def test_no_room_ends_with_5_and_numbers(cli: Cli) -> None:
    await cli.ok("volume", "create", "x", "--size", "9T")
    told = (await cli("volume", "create", "y", "--size", "9T")).failed(5)
    assert "10 times" in told


async def test_not_admitted_ends_with_7(cli: Cli, daemon: Rig) -> None:
    daemon.admit = lambda peer: False
    assert 'the group "blockd"' in (await cli("volume", "list")).failed(7)


async def test_an_unknown_project_on_create_ends_with_7(cli: Cli) -> None:
    (await cli("volume", "create", "x", "--size", "1M", "--project", NOBODY)).failed(7)


async def test_no_socket_ends_with_6_and_how_to_start(tmp_path: Path) -> None:
    told = (await Cli(tmp_path / "none")("volume", "list")).failed(6)
    assert "there is no socket" in told
    assert "systemctl start blockd" in told


async def test_nobody_listening_ends_with_6(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:  # as by a daemon that was killed
        left.bind(str(tmp_path / "s"))
    assert "does not run" in (await Cli(tmp_path / "s")("volume", "list")).failed(6)


async def test_no_permission_ends_with_6_and_names_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("blockd.cli.client.UnixConnection.connect", refuse)
    told = (await Cli(tmp_path / "s")("health")).failed(6)
    assert 'join the group "' in told


async def test_a_path_too_long_for_a_socket_ends_with_6(tmp_path: Path) -> None:
    (await Cli(tmp_path / ("x" * 200))("health")).failed(6)


async def test_a_server_that_is_not_blockd_ends_with_6(tmp_path: Path) -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    async with strange_server(tmp_path / "s", lambda _: page):
        assert "is it blockd's socket?" in (await Cli(tmp_path / "s")("pool")).failed(6)
    async with strange_server(tmp_path / "t", lambda _: b"SSH-2.0-x\r\n"):
        (await Cli(tmp_path / "t")("pool")).failed(6)


async def test_an_internal_error_points_to_the_log(tmp_path: Path) -> None:
    answer = http(500, {"type": "internal_server_error", "message": "Internal error"})
    async with strange_server(tmp_path / "s", lambda _: answer):
        assert "journalctl -u blockd" in (await Cli(tmp_path / "s")("pool")).failed(1)


async def test_a_dropped_create_is_sent_once_more_with_the_same_key(tmp_path: Path) -> None:
    answers = iter([b"", b""])
    async with strange_server(tmp_path / "s", lambda _: next(answers, b"")) as requests:
        ran = await Cli(tmp_path / "s")("volume", "create", "x", "--size", "1M", "--zone", "z")
    ran.failed(6)
    keys = [line for r in requests for line in r.split(b"\r\n") if b"Idempotency-Key" in line]
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_a_dropped_delete_is_not_sent_again(tmp_path: Path) -> None:
    volume = {"id": NOBODY, "name": "x", "status": "available"}
    shown = http(200, volume)
    async with strange_server(
        tmp_path / "s", lambda r: shown if r.startswith(b"GET") else b""
    ) as requests:
        ran = await Cli(tmp_path / "s")("volume", "delete", NOBODY, "--yes", "--zone", "z")
    ran.failed(6)
    assert sum(r.startswith(b"DELETE") for r in requests) == 1


async def test_timeout_ends_with_4_while_the_daemon_goes_on(cli: Cli, daemon: Rig) -> None:
    async with daemon.driver.turn():
        ran = await cli("volume", "create", "x", "--size", "1M", "--timeout", "100ms")
        assert "goes on in the daemon (status: creating)" in ran.failed(4)
    async with asyncio.timeout(10):
        while (await cli.ok("volume", "show", "x", "--json")).json["status"] == "creating":
            pass


async def test_timeout_ends_with_4_when_the_daemon_does_not_answer(tmp_path: Path) -> None:
    volume = http(200, {"id": NOBODY, "name": "x", "status": "creating"})
    async with strange_server(tmp_path / "s", lambda r: volume if r.startswith(b"POST") else None):
        ran = await Cli(tmp_path / "s")(
            "volume", "create", "x", "--size", "1M", "--zone", "z", "--timeout", "200ms"
        )
        ran.failed(4)


async def test_wait_outlives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    volume = {"id": NOBODY, "name": "x", "size": 1024**2}
    gets = iter([b"", b"", http(200, {**volume, "status": "creating"})])

    def answer(request: bytes) -> bytes:
        if request.startswith(b"POST"):
            return http(200, {**volume, "status": "creating"})
        return next(gets, http(200, {**volume, "status": "available"}))

    async with strange_server(tmp_path / "s", answer):
        await Cli(tmp_path / "s").ok("volume", "create", "x", "--size", "1M", "--zone", "z")


async def test_deleted_while_waiting_ends_with_3(cli: Cli, tmp_path: Path) -> None:
    gone = {"type": "not_found", "resource": "volume", "resource_id": NOBODY, "message": "m"}
    volume = http(200, {"id": NOBODY, "name": "x", "status": "creating"})
    async with strange_server(
        tmp_path / "t", lambda r: volume if r.startswith(b"POST") else http(404, gone)
    ):
        argv = ("volume", "create", "x", "--size", "1M", "--zone", "z")
        assert (await Cli(tmp_path / "t")(*argv)).failed(3) == 'there is no volume "x"'


async def test_health_ends_with_1_when_degraded(tmp_path: Path) -> None:
    health = {
        "status": "degraded",
        "version": "9",
        "zone": "z",
        "pools": [],
        "queued": 0,
        "problems": ["pool vg/p is ro"],
    }
    async with strange_server(tmp_path / "s", lambda _: http(200, health)):
        ran = await Cli(tmp_path / "s")("health")
        assert (ran.code, ran.err) == (1, "")
        assert "pool vg/p is ro" in ran.out
        assert (await Cli(tmp_path / "s")("health", "--json")).json == health


async def test_version_works_without_a_daemon(tmp_path: Path) -> None:
    ran = await Cli(tmp_path / "none")("version")
    assert ran.code == 0
    assert ran.out.startswith("blockctl  ")
    assert (await Cli(tmp_path / "none").ok("version", "--json")).json["blockd"] is None


async def test_a_name_that_is_no_text_is_a_usage_error(cli: Cli) -> None:
    (await cli("volume", "show", os.fsdecode(b"\xff\xfe"))).failed(2)
