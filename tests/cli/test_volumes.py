"""What `blockctl volume …` does, as the daemon sees it."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.api.rig import OTHER_PROJECT, PROJECT, Rig
from tests.cli.rig import Cli


async def test_create_waits_until_it_is_available_and_tells_name_size_and_id(cli: Cli) -> None:
    ran = await cli.ok("volume", "create", "data", "--size", "20G")
    volume = (await cli.ok("volume", "show", "data", "--json")).json
    assert volume["status"] == "available"
    assert volume["size"] == 20 * 1024**3
    assert ran.out == f'created volume "data" (20 GiB): {volume["id"]}\n'


async def test_create_passes_every_option_on(cli: Cli) -> None:
    options = ("--size", "1MiB", "--class", "sbs", "--iops", "15000", "--tag", "a", "--tag", "b")
    made = (
        await cli.ok("volume", "create", "x", *options, "--project", OTHER_PROJECT, "--json")
    ).json
    assert made["specs"] == {"class": "sbs", "perf_iops": 15000}
    assert made["tags"] == ["a", "b"]
    assert made["project_id"] == OTHER_PROJECT


async def test_create_without_size_or_snapshot_is_a_usage_error(cli: Cli) -> None:
    assert "--size" in (await cli("volume", "create", "x")).failed(2)


async def test_create_from_snapshot_by_name_takes_its_size(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "3MiB")
    await cli.ok("snapshot", "create", "data", "before")
    clone = (await cli.ok("volume", "create", "c", "--from-snapshot", "before", "--json")).json
    assert clone["size"] == 3 * 1024**2
    assert clone["parent_snapshot_id"]


async def test_create_no_wait_returns_while_it_is_creating(cli: Cli, daemon: Rig) -> None:
    async with daemon.driver.turn():
        made = (await cli.ok("volume", "create", "x", "--size", "1M", "--no-wait", "--json")).json
    assert made["status"] == "creating"


async def test_list_fetches_all_pages_in_the_order_asked(cli: Cli, daemon: Rig) -> None:
    for number in range(205):
        await daemon.api.ok(
            "POST",
            "/block/v1/zones/xx-lab-1/volumes",
            {"name": f"v{number:03}", "from_empty": {"size": 1024**2}},
        )
    listed = (await cli.ok("volume", "list", "--json", "--sort", "name", "--reverse")).json
    assert [v["name"] for v in listed] == [f"v{n:03}" for n in reversed(range(205))]
    few = (await cli.ok("volume", "list", "--json", "--limit", "103")).json
    assert [v["name"] for v in few] == [f"v{n:03}" for n in range(103)]


async def test_list_filters_by_prefix_tag_project_and_deletion(cli: Cli) -> None:
    for name, tag in (("a1", "x"), ("a2", "y"), ("b1", "x")):
        await cli.ok("volume", "create", name, "--size", "1M", "--tag", tag)

    async def names(*options: str) -> list[str]:
        return [v["name"] for v in (await cli.ok("volume", "list", "--json", *options)).json]

    assert await names("--name", "a") == ["a1", "a2"]
    assert await names("--tag", "x") == ["a1", "b1"]
    assert await names("--tag", "x", "--tag", "y") == ["a1", "a2", "b1"]
    assert await names("--project", OTHER_PROJECT) == []
    assert await names("--project", PROJECT) == ["a1", "a2", "b1"]
    await cli.ok("volume", "delete", "a1", "--yes")
    assert await names() == ["a2", "b1"]
    assert await names("--deleted") == ["a1", "a2", "b1"]


async def test_show_tells_everything_a_person_needs(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "1GB", "--tag", "web")
    shown = (await cli.ok("volume", "show", "data")).out
    path = (await cli.ok("volume", "path", "data")).out.strip()
    for text in ("data", "available", "1 GB (1000000000 bytes)", "sbs, 5000 IOPS", path, "web"):
        assert text in shown


async def test_rename_keeps_the_id(cli: Cli) -> None:
    made = (await cli.ok("volume", "create", "old", "--size", "1M", "-q")).id
    await cli.ok("volume", "rename", "old", "new")
    assert (await cli.ok("volume", "show", "new", "-q")).id == made


@pytest.mark.parametrize(
    ("options", "tags"),
    [
        (("--add", "c", "--add", "a"), ["a", "b", "c"]),
        (("--remove", "a", "--add", "z"), ["b", "z"]),
        (("--clear", "--add", "n"), ["n"]),
        (("--clear",), []),
    ],
)
async def test_tag_changes_tags_and_keeps_their_order(
    cli: Cli, options: tuple[str, ...], tags: list[str]
) -> None:
    await cli.ok("volume", "create", "x", "--size", "1M", "--tag", "a", "--tag", "b")
    assert (await cli.ok("volume", "tag", "x", *options, "--json")).json["tags"] == tags


async def test_tag_without_anything_to_do_is_a_usage_error(cli: Cli) -> None:
    (await cli("volume", "tag", "x")).failed(2)


async def test_grow_to_a_size_and_by_a_size(cli: Cli) -> None:
    await cli.ok("volume", "create", "x", "--size", "1M")
    assert (await cli.ok("volume", "grow", "x", "3M", "--json")).json["size"] == 3 * 1024**2
    ran = await cli.ok("volume", "grow", "x", "+5M")
    assert ran.out == 'volume "x" has now 8 MiB\n'


async def test_grow_to_less_is_refused_as_a_bad_argument(cli: Cli) -> None:
    await cli.ok("volume", "create", "x", "--size", "2M")
    assert "shrink" in (await cli("volume", "grow", "x", "1M")).failed(2)


async def test_set_iops(cli: Cli) -> None:
    await cli.ok("volume", "create", "x", "--size", "1M")
    changed = (await cli.ok("volume", "set-iops", "x", "15000", "--json")).json
    assert changed["type"] == "sbs_15k"
    (await cli("volume", "set-iops", "x", "7")).failed(2)


async def test_delete_several_and_undelete_by_name_and_by_id(cli: Cli) -> None:
    for name in ("a", "b"):
        await cli.ok("volume", "create", name, "--size", "1M")
    b_id = (await cli.ok("volume", "show", "b", "-q")).id
    ran = await cli.ok("volume", "delete", "a", "b", b_id, "--yes")
    assert ran.out.count("\n") == 2
    assert f"blockctl volume undelete {b_id}" in ran.out
    assert "undelete" in (await cli("volume", "show", "a")).failed(3)
    assert (await cli.ok("volume", "undelete", "a", "--json")).json["status"] == "available"
    assert (await cli.ok("volume", "undelete", b_id, "-q")).id == b_id
    (await cli("volume", "undelete", "a")).failed(3)


async def test_delete_of_one_in_use_still_deletes_the_others_and_says_which(cli: Cli) -> None:
    for name in ("busy", "idle"):
        await cli.ok("volume", "create", name, "--size", "1M")
    device = (await cli.ok("volume", "path", "busy")).out.strip()
    descriptor = os.open(device, os.O_RDWR)
    try:
        ran = await cli("volume", "delete", "busy", "idle", "--yes")
    finally:
        os.close(descriptor)
    told = 'volume "busy" is in use: unmount or detach it before you delete it'
    assert ran.failed(5) == told
    assert ran.out.startswith('deleted volume "idle"')
    (await cli("volume", "show", "idle")).failed(3)


async def test_delete_of_one_that_does_not_exist_deletes_none(cli: Cli) -> None:
    await cli.ok("volume", "create", "a", "--size", "1M")
    (await cli("volume", "delete", "a", "nope", "--yes")).failed(3)
    await cli.ok("volume", "show", "a")


async def test_delete_without_yes_and_without_a_terminal_is_refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cli.ok("volume", "create", "a", "--size", "1M")
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert "--yes" in (await cli("volume", "delete", "a")).failed(2)
        monkeypatch.undo()
    await cli.ok("volume", "show", "a")


@pytest.mark.parametrize(("typed", "code"), [(b"y\n", 0), (b"n\n", 1), (b"\n", 1)])
async def test_delete_asks_on_a_terminal(cli: Cli, typed: bytes, code: int) -> None:
    await cli.ok("volume", "create", "a", "--size", "1M")
    ran = await cli.on_terminal("volume", "delete", "a", typed=typed)
    assert 'Delete volume "a"? [y/N]' in ran.out
    assert ran.code == code
    assert (await cli("volume", "show", "a")).code == (3 if code == 0 else 0)


async def test_revert_gives_the_bytes_back_and_keeps_the_previous_ones(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "1M")
    device = (await cli.ok("volume", "path", "data")).out.strip()
    with open(device, "r+b") as disk:
        disk.write(b"first")
    await cli.ok("snapshot", "create", "data", "before")
    with open(device, "r+b") as disk:
        disk.write(b"later")
    ran = await cli.ok("volume", "revert", "data", "before")
    assert ran.out.startswith('volume "data" is back to snapshot "before"; what it held is kept')
    with open(device, "rb") as disk:
        assert disk.read(5) == b"first"
    assert len((await cli.ok("snapshot", "list", "--json")).json) == 2


async def test_revert_without_keeping_makes_no_snapshot(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "1M")
    await cli.ok("snapshot", "create", "data", "before")
    ran = await cli.ok("volume", "revert", "data", "before", "--no-keep-previous")
    assert ran.out == 'volume "data" is back to snapshot "before"\n'
    assert len((await cli.ok("snapshot", "list", "--json")).json) == 1


async def test_revert_to_a_snapshot_of_another_volume_names_both(cli: Cli) -> None:
    for name in ("a", "b"):
        await cli.ok("volume", "create", name, "--size", "1M")
    await cli.ok("snapshot", "create", "b", "of-b")
    told = (await cli("volume", "revert", "a", "of-b")).failed(5)
    assert told.startswith('snapshot "of-b" was not taken of volume "a"')


async def test_path_prints_the_device_and_nothing_else(cli: Cli) -> None:
    made = (await cli.ok("volume", "create", "data", "--size", "1M", "-q")).id
    ran = await cli.ok("volume", "path", "data")
    assert ran.out.endswith(f"/dev/{made}\n")
    assert os.path.exists(ran.out.strip())


async def test_types(cli: Cli) -> None:
    assert (await cli.ok("volume", "types", "-q")).out.split() == ["b_ssd", "sbs_15k", "sbs_5k"]


async def test_thick_volumes_are_followed_as_jobs_and_jobs_name_them(cli: Cli) -> None:
    ran = await cli.ok("volume", "create", "data", "--size", "3MiB", "--class", "bssd")
    assert ran.out.startswith('created volume "data" (3 MiB): ')
    await cli.ok("snapshot", "create", "data", "monday")
    await cli.ok("volume", "grow", "data", "5MiB")
    reverted = await cli.ok("volume", "revert", "data", "monday")
    assert "is back to snapshot" in reverted.out
    await cli.ok("snapshot", "clone", "monday", "copy")
    shown = (await cli.ok("volume", "show", "copy")).out
    assert "bssd (b_ssd)" in shown
    assert "IOPS" not in shown
    listed = (await cli.ok("job", "list")).out.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [
        ["clone", "volume", '"copy"'],
        ["revert", "volume", '"data"'],
        ["grow", "volume", '"data"'],
        ["create", "volume", '"data"'],
    ]
    job = (await cli.ok("job", "list", "--kind", "revert", "--json")).json[0]
    told = (await cli.ok("job", "show", job["id"])).out
    assert 'Object    volume "data"' in told
    done = (await cli.ok("job", "wait", job["id"])).out
    assert done.startswith('revert of volume "data" succeeded: ')


async def test_thick_create_that_is_cancelled_says_so(cli: Cli, daemon: Rig) -> None:
    thick = daemon.drivers["bssd"]
    thick.gates["complete"] = asyncio.Event()
    ran = await cli(
        "volume", "create", "x", "--size", "3MiB", "--class", "bssd", "--timeout", "100ms"
    )
    assert "takes longer than 0.1 s: it goes on in the daemon: blockctl job wait" in ran.failed(4)
    job = (await cli.ok("job", "list", "--json")).json[0]
    assert 'create of volume "x" is cancelled' in (await cli.ok("job", "cancel", job["id"])).out
    volume = (await cli.ok("volume", "show", "x", "--json")).json
    assert volume["status"] == "error"


async def test_set_iops_of_a_thick_volume_is_refused(cli: Cli) -> None:
    await cli.ok("volume", "create", "x", "--size", "1MiB", "--class", "bssd")
    assert "have no perf_iops" in (await cli("volume", "set-iops", "x", "15000")).failed(2)
