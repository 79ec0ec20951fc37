"""How a process of its own ends: signals, pipes, full disks; and how fast it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.api.rig import V1, Rig
from tests.cli.rig import ARGV, Cli


async def test_ctrl_c_while_waiting_ends_with_130_and_the_daemon_goes_on(
    cli: Cli, daemon: Rig
) -> None:
    async with daemon.driver.turn():
        process = await cli.start("volume", "create", "x", "--size", "1M")
        async with asyncio.timeout(20):
            while not (await daemon.api.ok("GET", f"{V1}/volumes"))["volumes"]:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            out, err = await process.communicate()
    assert process.returncode == 130
    assert (out, err) == (b"", b"blockctl: interrupted; what was begun goes on in the daemon\n")
    async with asyncio.timeout(10):
        while (await cli.ok("volume", "show", "x", "--json")).json["status"] != "available":
            pass


async def test_a_spinner_shows_on_a_terminal_and_leaves_nothing(cli: Cli, daemon: Rig) -> None:
    async with daemon.driver.turn():
        ran = await cli.on_terminal(
            "volume", "create", "x", "--size", "1M", "--timeout", "1s", env={"NO_COLOR": "1"}
        )
    assert 'creating volume "x"' in ran.out
    assert "\x1b[?25h" in ran.out  # the cursor is back
    assert ran.code == 4


async def test_a_reader_that_leaves_is_no_error(cli: Cli, daemon: Rig) -> None:
    for number in range(300):
        await daemon.api.ok(
            "POST", f"{V1}/volumes", {"name": f"v{number}", "from_empty": {"size": 1024**2}}
        )
    for argv in (("volume", "list"), ("volume", "list", "--json"), ("health",)):
        reader, writer = os.pipe()
        os.close(reader)
        process = await cli.start(*argv, stdout=writer)
        os.close(writer)
        _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")


async def test_output_that_cannot_be_written_is_an_error(cli: Cli) -> None:
    with open("/dev/full", "wb") as full:
        process = await cli.start("health", stdout=full.fileno())
        _, err = await process.communicate()
    assert process.returncode == 1
    assert err == b"blockctl: cannot write the output: No space left on device\n"


async def test_exit_codes_reach_the_shell(cli: Cli) -> None:
    for argv, code in ((("volume", "show", "x"), 3), (("frob",), 2), (("health",), 0)):
        process = await cli.start(*argv)
        await process.communicate()
        assert process.returncode == code


async def test_the_shell_completes_names(cli: Cli) -> None:
    for name in ("data-1", "data-2", "other", "evil\u202e"):
        await cli.ok("volume", "create", name, "--size", "1M")
    await cli.ok("snapshot", "create", "data-1", "snap")

    async def complete(*words: str) -> list[str]:
        environment = {
            **cli.environment(),
            "_BLOCKCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["blockctl", *words]),
            "COMP_CWORD": str(len(words)),
        }
        process = await asyncio.create_subprocess_exec(
            *ARGV, stdout=asyncio.subprocess.PIPE, env=environment
        )
        return (await process.communicate())[0].decode().split()

    assert await complete("volume", "show", "da") == ["data-1", "data-2"]
    assert await complete("--json", "snapshot", "delete", "") == ["snap"]
    assert "evil" not in " ".join(await complete("volume", "delete", "e"))
    assert "undelete" in await complete("volume", "")


async def test_completion_without_a_daemon_is_empty_and_silent(tmp_path: Path) -> None:
    environment = {
        **Cli(tmp_path / "none").environment(),
        "_BLOCKCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "blockctl volume show x",
        "COMP_CWORD": "3",
    }
    process = await asyncio.create_subprocess_exec(
        *ARGV, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    assert await process.communicate() == (b"\n", b"")


@pytest.mark.parametrize("module", ["aiohttp", "pydantic", "rich", "asyncio"])
async def test_loading_imports_nothing_slow(module: str) -> None:
    code = f"import sys, blockd.cli.main, blockd.cli.app; sys.exit({module!r} in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
