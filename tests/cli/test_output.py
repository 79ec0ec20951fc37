"""What is printed, and what never is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blockd.cli.text import age, clean, percent, width
from tests.api.rig import NOBODY, Rig
from tests.cli.rig import Cli, http, strange_server

EVIL = "\x1b]0;pwned\x07\x1b[31m[bold]x\r\n\u202e\x9b2J"
FORBIDDEN = set("\x07\r\u202e\x9b")
SGR = re.compile(r"\x1b\[[0-9;]*m")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (("volume", "list"), list),
        (("volume", "show", "data"), dict),
        (("volume", "types"), list),
        (("volume", "path", "data"), dict),
        (("volume", "create", "n", "--size", "1M"), dict),
        (("volume", "rename", "data", "n"), dict),
        (("volume", "tag", "data", "--add", "n"), dict),
        (("volume", "grow", "data", "+1M"), dict),
        (("volume", "set-iops", "data", "15000"), dict),
        (("volume", "revert", "data", "snap"), dict),
        (("volume", "delete", "data", "--yes"), list),
        (("snapshot", "list"), list),
        (("snapshot", "show", "snap"), dict),
        (("snapshot", "create", "data"), dict),
        (("snapshot", "clone", "snap", "n"), dict),
        (("snapshot", "publish", "snap"), dict),
        (("snapshot", "delete", "snap"), list),
        (("backup", "now"), list),
        (("backup", "list"), list),
        (("pool",), list),
        (("pool", "list"), list),
        (("pool", "show", "sbs"), dict),
        (("health",), dict),
        (("version",), dict),
    ],
)
async def test_json_is_all_there_is_on_stdout(
    cli: Cli, argv: tuple[str, ...], kind: type[object]
) -> None:
    await cli.ok("volume", "create", "data", "--size", "1M")
    await cli.ok("snapshot", "create", "data", "snap")
    assert isinstance((await cli.ok("--json", *argv)).json, kind)


async def test_json_of_a_list_is_what_the_api_answers(cli: Cli, daemon: Rig) -> None:
    await cli.ok("volume", "create", "data", "--size", "1M", "--tag", "böse\u202e")
    answer = await daemon.api.ok("GET", "/block/v1/zones/xx-lab-1/volumes")
    ran = await cli.ok("volume", "list", "--json")
    assert ran.json == answer["volumes"]
    assert ran.out.isascii()


async def test_an_empty_list_is_an_empty_array_or_a_header(cli: Cli) -> None:
    assert (await cli.ok("volume", "list", "--json")).json == []
    assert (await cli.ok("volume", "list")).out.split()[0] == "NAME"
    assert (await cli.ok("volume", "list", "-q")).out == ""
    assert (await cli.on_terminal("volume", "list")).out == "no volumes yet\n"


async def test_global_options_stand_before_or_after_the_verb(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "1M")
    first = await cli.ok("-q", "volume", "list")
    assert first == await cli.ok("volume", "-q", "list")
    assert first == await cli.ok("volume", "list", "-q")
    assert (await cli.ok("volume", "create", "--size", "1M", "-q", "--", "--json")).id
    assert (await cli.ok("volume", "show", "-q", "--", "--json")).id


async def test_plain_tables_are_whole_aligned_and_have_no_colours(cli: Cli) -> None:
    long = "n" * 200
    for name in (long, "böse 磁盘"):
        await cli.ok("volume", "create", name, "--size", "1M")
    header, first, second = (await cli.ok("volume", "list")).out.splitlines()
    assert long in first
    assert UUID.search(first)
    assert "\x1b" not in first
    assert width(second[: second.index("1 MiB")]) == width(first[: first.index("1 MiB")])
    assert header.split() == ["NAME", "SIZE", "STATUS", "AGE", "ID", "FROM", "TAGS", "CREATED"]


async def test_bytes_prints_exact_numbers(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "1049088")
    assert " 1049088 " in (await cli.ok("volume", "list", "--bytes")).out


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
async def test_on_a_terminal_ids_are_whole_and_lines_fit(cli: Cli, columns: int) -> None:
    for name in ("a" * 60, "b"):
        made = (await cli.ok("volume", "create", name, "--size", "1.5G", "-q")).id
        await cli.ok("snapshot", "create", name, f"before-{name}")
    for noun in ("volume", "snapshot"):
        ran = await cli.on_terminal(noun, "list", columns=columns, env={"NO_COLOR": "1"})
        lines = SGR.sub("", ran.out).rstrip("\n").split("\n")
        assert len(lines) == 3, ran.out
        assert all(UUID.search(line) for line in lines[1:])
        if columns >= 80:
            assert max(map(len, lines)) <= columns, ran.out
    assert made in (await cli.on_terminal("volume", "list", columns=columns)).out


async def test_colours_on_a_terminal_alone_and_not_with_no_color(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "1M")
    green = "\x1b[32mavailable\x1b[0m"
    assert green in (await cli.on_terminal("volume", "list")).out
    assert green in (await cli.on_terminal("volume", "show", "data")).out
    plain = await cli.on_terminal("volume", "list", env={"NO_COLOR": "1"})
    assert "\x1b[3" not in plain.out


@pytest.mark.parametrize(
    "argv",
    [
        ("volume", "list"),
        ("volume", "show", EVIL),
        ("volume", "tag", EVIL, "--add", "x"),
        ("volume", "rename", EVIL, EVIL),
        ("volume", "grow", EVIL, "+1M"),
        ("volume", "delete", EVIL, "--yes"),
        ("volume", "show", "unknown"),
        ("volume", EVIL),
    ],
)
async def test_hostile_names_and_tags_reach_no_terminal(
    tmp_path: Path, argv: tuple[str, ...]
) -> None:
    """From a daemon that let them in; ours does not."""
    volume = {
        "id": NOBODY, "name": EVIL, "type": EVIL, "size": 1024**2, "project_id": EVIL,
        "created_at": EVIL, "updated_at": EVIL, "references": [], "parent_snapshot_id": None,
        "status": EVIL, "tags": [EVIL], "specs": {"class": EVIL, "perf_iops": 5000},
        "error": EVIL, "path": EVIL,
    }  # fmt: skip
    page = {"volumes": [volume], "total_count": 1}

    def answer(request: bytes) -> bytes:
        return http(200, page if b"/volumes?" in request else volume)

    async with strange_server(tmp_path / "s", answer):
        cli = Cli(tmp_path / "s")
        for env in ({"NO_COLOR": "1", "TERM": "dumb"}, {}):
            out = (await cli.on_terminal("--zone", "z", *argv, columns=250, env=env)).out
            assert out
            assert "\x1b" not in SGR.sub("", out)
            assert not FORBIDDEN & set(out)
            assert "\x1b[31m[bold]" not in out
        ran = await cli("--zone", "z", *argv)
        assert not (FORBIDDEN | {"\x1b"}) & set(ran.out + ran.err)


async def test_markup_in_names_is_no_markup(cli: Cli) -> None:
    await cli.ok("volume", "create", "[red]:smile:[/red]", "--size", "1M")
    assert "[red]:smile:[/red]" in (await cli.on_terminal("volume", "list", columns=120)).out


async def test_pool_shows_percentages_everywhere_and_a_bar_on_a_terminal(cli: Cli) -> None:
    plain = (await cli.ok("pool")).out
    assert "12%" in plain
    assert "░" not in plain
    shown = (await cli.on_terminal("pool")).out
    assert "░" in shown
    assert max(map(len, SGR.sub("", shown).splitlines())) <= 80


async def test_health_says_ok(cli: Cli) -> None:
    ran = await cli.ok("health")
    assert ran.out.startswith("Status     ok\n")
    assert (await cli.ok("health", "-q")).out == "ok\n"


async def test_help_documents_the_exit_codes(cli: Cli) -> None:
    shown = (await cli.ok("--help")).out
    assert "Exit codes:\n" in shown
    for code in range(8):
        assert re.search(rf"^ +{code}  \w", shown, re.MULTILINE)


async def test_a_noun_alone_shows_its_help_and_ends_with_2(cli: Cli) -> None:
    ran = await cli("volume")
    assert ran.code == 2
    assert "set-iops" in ran.err
    assert ran.out == ""


def test_clean_leaves_what_is_printable() -> None:
    assert clean("böse 磁盘 ok") == "böse 磁盘 ok"
    assert clean("a\x1b[0m\n\udcff") == r"a\x1b[0m\n\udcff"


def test_percent_never_rounds_something_to_nothing() -> None:
    assert [percent(u, 1000) for u in (0, 1, 10, 999, 1000)] == ["0%", "<1%", "1%", "99%", "100%"]
    assert percent(0, 0) == "-"


def test_age_of_something_else_is_shown_as_it_is() -> None:
    assert age("yesterday") == "yesterday"
    assert age("2000-01-01T00:00:00.000000Z").endswith("y")
