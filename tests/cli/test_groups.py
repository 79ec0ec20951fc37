"""`blockctl group snapshot`."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import pytest_asyncio

from blockd.domain.group import Group
from blockd.service.groups import Groups
from tests.api.rig import Rig
from tests.cli.rig import Cli


@pytest_asyncio.fixture(autouse=True)
async def _volumes(cli: Cli) -> None:
    for name in ("data", "journal"):
        await cli.ok("volume", "create", name, "--size", "2M")


async def test_snapshots_are_listed_in_the_order_named_with_the_time_of_standing_still(
    cli: Cli,
) -> None:
    ran = await cli.ok("group", "snapshot", "journal", "data", "--name", "night")
    lines = ran.out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["night-1", "journal"],
        ["night-2", "data"],
    ]
    assert re.fullmatch(
        r"2 snapshots of one instant; their volumes stood still \d+ ms", lines[-1]
    ), ran.out


async def test_json_is_the_group_and_quiet_the_ids(cli: Cli) -> None:
    group = (await cli.ok("group", "snapshot", "data", "journal", "--json")).json
    assert [one["parent_volume"]["name"] for one in group["snapshots"]] == ["data", "journal"]
    ids = (await cli.ok("group", "snapshot", "data", "journal", "--quiet")).out.split()
    assert len(ids) == 2
    assert {len(one) for one in ids} == {36}


async def test_group_that_was_begun_is_waited_for(
    daemon: Rig, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, answered = asyncio.Event(), list[Group]()
    create = Groups.create

    async def noticed(*args: Any) -> Group:
        answered.append(await create(*args))
        gate.set()  # not before it was answered as it was begun
        return answered[0]

    monkeypatch.setattr(Groups, "create", noticed)
    daemon.drivers["sbs"].gates["still"] = gate
    daemon.service.groups._classes["sbs"].patience_s = 0.1
    group = (await cli.ok("group", "snapshot", "data", "journal", "--json")).json
    assert answered[0].suspended_ms is None
    assert {one["status"] for one in group["snapshots"]} == {"available"}
    assert group["suspended_ms"] is not None
    shown = (await cli.ok("snapshot", "show", group["snapshots"][0]["name"])).out
    assert group["id"] in shown


async def test_what_cannot_be_is_told(cli: Cli) -> None:
    told = (await cli("group", "snapshot", "data", "nonesuch")).failed(3)
    assert "nonesuch" in told
    told = (await cli("group", "snapshot", "data", "data")).failed(2)
    assert "once" in told
    told = (await cli("group", "snapshot", "data", "--quiesce", "require")).failed(5)
    assert "quiesce" in told
    assert (await cli.ok("snapshot", "list", "--json")).json == []
