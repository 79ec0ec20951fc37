"""`blockctl` and guests: a real libvirtd with its test driver, which attaches nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from blockd.api.app import make_app
from blockd.api.server import serve_unix
from blockd.domain.volume import Volume
from tests.cli.rig import Cli
from tests.support.guests import a_volume, has_users, until, with_guests
from tests.support.libvirt_daemon import LibvirtDaemon, libvirt_daemon


@pytest.fixture
def libvirtd() -> Iterator[LibvirtDaemon]:
    with libvirt_daemon() as daemon:
        yield daemon


@dataclass
class Attached:
    """A volume that domain `web` has, and the client."""

    cli: Cli
    volume: Volume


async def _metrics() -> bytes:
    return b""


@pytest_asyncio.fixture
async def attached(tmp_path: Path, libvirtd: LibvirtDaemon) -> AsyncIterator[Attached]:
    async with with_guests(tmp_path, libvirtd.uri) as run:
        app = make_app(run.service, _metrics, lambda _: True)
        async with serve_unix(app, run.socket):
            volume = await a_volume(run)
            libvirtd.domain("web", [volume.id])
            libvirtd.domain("db")
            await until(lambda: has_users(run, volume))
            yield Attached(Cli(run.socket), volume)


async def test_show_names_the_guest_and_its_disk(attached: Attached) -> None:
    shown = await attached.cli("volume", "show", "data")
    assert "domain web as vda (attached)" in shown.out
    assert "in_use" in shown.out


async def test_snapshot_tells_what_consistency_was_reached(attached: Attached) -> None:
    await attached.cli("snapshot", "create", "data", "monday", "--quiesce", "require")
    shown = await attached.cli("snapshot", "show", "monday")
    assert "filesystem, guest frozen for" in shown.out


async def test_delete_of_a_guests_volume_says_to_detach_it(attached: Attached) -> None:
    refused = await attached.cli("volume", "delete", "data", "--yes")
    assert "detach it before you delete it" in refused.failed(5)


async def test_what_libvirt_refuses_is_told_in_one_line(attached: Attached) -> None:
    for argv, reason in (
        (["attach", "data", "db"], "is attached to web: detach it first"),
        (["detach", "data"], "detach the disk: "),
        (["detach", "data", "db"], "is attached to web: not to db"),
    ):
        assert reason in (await attached.cli("volume", *argv)).failed(5)


async def test_guest_that_reads_a_snapshot_is_named_and_the_snapshot_not_deleted(
    attached: Attached, libvirtd: LibvirtDaemon
) -> None:
    cli = attached.cli
    made = json.loads((await cli("snapshot", "create", "data", "monday", "--json")).out)
    libvirtd.define("backup", [made["id"]])
    await until(lambda: has_reader(cli))
    shown = await cli("snapshot", "show", "monday")
    assert "domain backup as vda (attached)" in shown.out
    assert "in_use" in shown.out
    refused = await cli("snapshot", "delete", "monday")
    assert "attached to backup: detach it first" in refused.failed(5)
    for argv, reason in (
        (["attach", "monday", "backup"], "is attached to backup already"),
        (["attach", "monday", "db"], "attach the disk: "),
        (["detach", "monday"], "detach the disk: "),
        (["detach", "monday", "db"], "is attached to backup: not to db"),
    ):
        assert reason in (await cli("snapshot", *argv)).failed(5)


async def has_reader(cli: Cli) -> bool:
    return "backup" in (await cli("snapshot", "show", "monday")).out
