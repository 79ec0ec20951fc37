"""What `blockctl snapshot …` does, as the daemon sees it."""

from __future__ import annotations

import pytest_asyncio

from tests.cli.rig import Cli


@pytest_asyncio.fixture(autouse=True)
async def _data(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "2M")


async def test_create_with_name_tags_and_public(cli: Cli) -> None:
    made = (
        await cli.ok("snapshot", "create", "data", "s", "--tag", "t", "--public", "--json")
    ).json
    assert (made["status"], made["tags"], made["public"]) == ("available", ["t"], True)
    assert made["parent_volume"]["name"] == "data"


async def test_create_without_a_name_tells_the_one_made_up(cli: Cli) -> None:
    ran = await cli.ok("snapshot", "create", "data")
    [made] = (await cli.ok("snapshot", "list", "--json")).json
    assert ran.out == f'created snapshot "{made["name"]}" of volume "data": {made["id"]}\n'


async def test_list_of_one_volume_and_after_it_is_deleted(cli: Cli) -> None:
    await cli.ok("volume", "create", "other", "--size", "1M")
    await cli.ok("snapshot", "create", "data", "of-data")
    await cli.ok("snapshot", "create", "other", "of-other")
    assert (await cli.ok("snapshot", "list", "--volume", "data")).out.count("of-") == 1
    await cli.ok("volume", "delete", "data", "--yes")
    lines = (await cli.ok("snapshot", "list", "--sort", "name")).out.splitlines()
    assert lines[1].split()[:2] == ["of-data", "-"]
    assert "a volume now gone" in (await cli.ok("snapshot", "show", "of-data")).out


async def test_rename_tag_publish_unpublish(cli: Cli) -> None:
    await cli.ok("snapshot", "create", "data", "s")
    await cli.ok("snapshot", "rename", "s", "t")
    await cli.ok("snapshot", "tag", "t", "--add", "x")
    assert "public" in (await cli.ok("snapshot", "publish", "t")).out
    shown = (await cli.ok("snapshot", "show", "t", "--json")).json
    assert (shown["tags"], shown["public"]) == (["x"], True)
    assert (await cli.ok("snapshot", "unpublish", "t", "--json")).json["public"] is False


async def test_delete_asks_nothing_and_undelete_brings_back(cli: Cli) -> None:
    await cli.ok("snapshot", "create", "data", "s")
    gone = (await cli.ok("snapshot", "delete", "s", "--json")).json
    assert [item["status"] for item in gone] == ["deleted"]
    back = (await cli.ok("snapshot", "undelete", "s", "--json")).json
    assert back["id"] == gone[0]["id"]


async def test_clone_makes_a_larger_volume(cli: Cli) -> None:
    await cli.ok("snapshot", "create", "data", "s")
    clone = (await cli.ok("snapshot", "clone", "s", "copy", "--size", "5M", "--json")).json
    assert (clone["name"], clone["size"]) == ("copy", 5 * 1024**2)
    told = (await cli("snapshot", "clone", "s", "small", "--size", "1M")).failed(5)
    assert "size" in told
