"""`blockctl events`, and waiting that is told instead of asking."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockd.cli import changes, wait
from tests.api.rig import NOBODY, OTHER_PROJECT, V1, Rig, served
from tests.cli.rig import Cli, http, strange_server


async def line_of(process: Any) -> str:
    """The next line that a process prints."""
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode().rstrip("\n")


async def followed(rig: Rig, count: int = 1) -> None:
    """Wait until so many streams are open."""
    async with asyncio.timeout(20):
        while rig.service.events.followers != count:
            await asyncio.sleep(0.01)


async def ended(process: Any) -> tuple[str, str]:
    """What a process still printed, on both streams, and it ended well."""
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode == 0, (out, err)
    return out.decode(), err.decode()


def counted(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> Callable[[], int]:
    """How often a volume was asked for."""
    count, get = 0, rig.service.volumes.get

    async def counting(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return await get(*args, **options)

    monkeypatch.setattr(rig.service.volumes, "get", counting)
    return lambda: count


async def test_events_are_a_table_oldest_first(cli: Cli) -> None:
    made = (await cli.ok("volume", "create", "data", "--size", "1M", "-q")).id
    head, first, second = (await cli.ok("events")).out.splitlines()
    assert head.split() == ["TIME", "EVENT", "STATUS", "ID", "NAME"]
    assert first.split()[2:] == ["volume.created", "creating", made, "data"]
    assert second.split()[2:] == ["volume.changed", "available", made, "data"]


async def test_events_can_be_limited_begun_anywhere_and_be_json(cli: Cli) -> None:
    for name in ("a", "b", "c"):
        await cli.ok("volume", "create", name, "--size", "1M")
    everything = (await cli.ok("events", "--all", "--json")).json
    assert len(everything) == 6
    assert (await cli.ok("events", "--limit", "2", "--json")).json == everything[-2:]
    since = (await cli.ok("events", "--since", everything[1]["id"], "--json")).json
    assert since == everything[2:]
    assert (await cli.ok("events", "--project", OTHER_PROJECT, "--json")).json == []


async def test_events_that_are_no_longer_known_are_told_on_stderr(cli: Cli) -> None:
    ran = await cli("events", "--since", "00000000-1")
    assert ran.code == 0
    assert "list anew" in ran.err


async def test_events_of_an_older_daemon_end_with_1(tmp_path: Path) -> None:
    gone = http(404, {"type": "not_found", "resource": "route", "resource_id": "x", "message": "m"})
    async with strange_server(tmp_path / "s", lambda _: gone):
        assert "older" in (await Cli(tmp_path / "s")("events")).failed(1)


async def test_events_without_a_daemon_end_with_6(tmp_path: Path) -> None:
    assert "systemctl start" in (await Cli(tmp_path / "none")("events", "--follow")).failed(6)


async def test_events_not_admitted_end_with_7(cli: Cli, daemon: Rig) -> None:
    daemon.admit = lambda peer: False
    (await cli("events", "-f")).failed(7)


async def test_follow_goes_on_where_it_was_when_the_daemon_restarts(tmp_path: Path) -> None:
    async with served(tmp_path) as rig:
        process = await Cli(rig.socket).start("events", "--follow", "--json")
        await followed(rig)
        volume = await rig.api.volume(name="before")
        told = [json.loads(await line_of(process)) for _ in range(2)]
    try:
        async with served(tmp_path) as rig:
            # Perhaps before it is back: then it is told of what it has missed.
            await rig.api.ok("DELETE", f"{V1}/volumes/{volume['id']}")
            await rig.api.volume(name="after")
            told += [json.loads(await line_of(process)) for _ in range(3)]
    finally:
        process.kill()
        await process.communicate()
    numbers = [int(event["id"].split("-")[1]) for event in told]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert [event["resource"]["name"] for event in told[2:]] == ["before", "after", "after"]


async def test_follow_prints_a_line_at_once_and_names_are_harmless(cli: Cli, daemon: Rig) -> None:
    process = await cli.start("events", "--follow")
    await followed(daemon)
    await daemon.api.volume(name="a\u202eb")
    assert (await line_of(process)).split() == ["TIME", "EVENT", "STATUS", "ID", "NAME"]
    assert (await line_of(process)).endswith("  a\\u202eb")
    process.kill()
    await process.communicate()
    await followed(daemon, 0)


async def test_wait_is_told_and_does_not_ask_meanwhile(
    cli: Cli, daemon: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "SPINNER_AFTER_S", 60.0)  # nothing but an event ends the wait
    asked = counted(monkeypatch, daemon)
    async with daemon.driver.turn():
        running = asyncio.create_task(cli.ok("volume", "create", "x", "--size", "1M"))
        await followed(daemon)
        async with asyncio.timeout(20):
            while asked() < 2:  # before the stream, and once it has begun
                await asyncio.sleep(0.01)
    await running
    assert asked() <= 5
    await followed(daemon, 0)


async def test_wait_outlives_a_restart_in_between(tmp_path: Path) -> None:
    async with served(tmp_path) as rig, rig.driver.turn():
        process = await Cli(rig.socket).start("volume", "create", "x", "--size", "1M", "--json")
        await followed(rig)
        # As a crash would: what was begun stays in the journal.
        rig.operations._stop_s = 0.0
        await rig.operations.__aexit__(None, None, None)
    async with served(tmp_path) as rig:
        async with rig.driver.turn():
            await rig.operations.recover()
            await followed(rig)
        out, err = await ended(process)
    assert (json.loads(out)["status"], err) == ("available", "")


async def test_wait_asks_where_an_older_daemon_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(changes.time, "sleep", slept.append)
    volume = {"id": NOBODY, "name": "x", "size": 1024**2}
    gone = http(404, {"type": "not_found", "resource": "route", "resource_id": "x", "message": "m"})
    looks = iter([http(200, {**volume, "status": "creating"})] * 3)

    def answer(request: bytes) -> bytes:
        if b"/host/v1/events" in request:
            return gone
        if request.startswith(b"POST"):
            return http(200, {**volume, "status": "creating"})
        return next(looks, http(200, {**volume, "status": "available"}))

    async with strange_server(tmp_path / "s", answer) as requests:
        await Cli(tmp_path / "s").ok("volume", "create", "x", "--size", "1M", "--zone", "z")
    assert sum(b"/host/v1/events" in request for request in requests) == 1
    assert slept == [0.02, 0.03, 0.045]


async def test_job_wait_is_told(tmp_path: Path) -> None:
    async with served(tmp_path, default_class="bssd") as rig:
        cli = Cli(rig.socket)
        async with rig.driver.turn():
            await cli.ok("volume", "create", "x", "--size", "1M", "--no-wait")
            (job,) = (await cli.ok("job", "list", "--json")).json
            running = asyncio.create_task(cli.ok("job", "wait", job["id"]))
            await followed(rig)
        await running
        await followed(rig, 0)
