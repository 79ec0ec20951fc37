"""Starting processes: output, deadlines that do not kill, and children that outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from blockd.domain.errors import StartError
from blockd.host.command import (
    Child,
    CommandFailed,
    Companion,
    find_tool,
    lines_of,
    wait_for_survivors,
)


async def test_output_and_status_of_a_process() -> None:
    child = Child(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], {})
    output = await child.wait(10)
    assert (output.returncode, output.stdout, output.stderr) == (7, b"out\n", b"err\n")
    assert child.has_ended


async def test_large_output_needs_no_reader() -> None:
    child = Child(["/bin/sh", "-c", "head -c 5000000 /dev/zero"], {})
    assert len((await child.wait(30)).stdout) == 5_000_000


async def test_environment_is_just_what_was_given() -> None:
    os.environ["SECRET_OF_THE_DAEMON"] = "x"
    output = await Child(["/usr/bin/env"], {"GIVEN": "1"}).wait(10)
    names = {line.split(b"=")[0] for line in output.stdout.splitlines()}
    assert names == {b"LC_ALL", b"PATH", b"GIVEN"}


async def test_deadline_leaves_the_process_alone_and_it_can_be_awaited_again() -> None:
    child = Child(["/bin/sh", "-c", "read -r _ </dev/null; sleep 0.5; echo done"], {})
    with pytest.raises(TimeoutError):
        await child.wait(0.05)
    assert not child.has_ended
    assert (await child.wait(10)).stdout == b"done\n"


async def test_cancelled_waiter_leaves_the_process_alone() -> None:
    child = Child(["/bin/sh", "-c", "sleep 0.5; echo done"], {})
    waiter = asyncio.create_task(child.wait(10))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert (await child.wait(10)).stdout == b"done\n"


async def test_program_that_is_not_there_is_an_oserror() -> None:
    with pytest.raises(OSError, match="No such file"):
        Child(["/no/such/program"], {})


async def test_survivors_are_awaited_by_their_marker() -> None:
    child = Child(["/bin/sleep", "0.5"], {"BLOCKD_TEST_MARKER": "mine"})
    Child(["/bin/true"], {"BLOCKD_TEST_MARKER": "other"})
    await wait_for_survivors("BLOCKD_TEST_MARKER=mine", 10)
    assert (await child.wait(1)).returncode == 0


async def test_survivor_that_does_not_end_is_named() -> None:
    child = Child(["/bin/sleep", "2"], {"BLOCKD_TEST_MARKER": "slow"})
    with pytest.RaisesGroup(StartError):
        await wait_for_survivors("BLOCKD_TEST_MARKER=slow", 0.1)
    await child.wait(10)


async def test_companion_reads_lines_and_ends_with_its_stdin() -> None:
    async with Companion(["/bin/sh", "-c", "while read -r line; do :; done"]) as running:
        running.arm("hello", 1.0)
        pid = running.pid
        assert pid is not None
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_companion_that_died_is_replaced_by_one_that_knows_all_that_is_armed(
    tmp_path: Path,
) -> None:
    heard = tmp_path / "heard"
    script = f"while read -r line; do echo $$ $line >>{heard}; done"
    async with Companion(["/bin/sh", "-c", script]) as running:
        running.arm("early", 100)
        running.arm("over", 100)
        running.disarm("over")
        first = running.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        heard.unlink(missing_ok=True)
        running.arm("late", 200)
        assert running.pid != first
        second = running.pid
    told = [line.split() for line in heard.read_text().splitlines()]
    assert [(pid, verb, what) for pid, verb, _, what in told] == [
        (f"{second}", "arm", "early"),
        (f"{second}", "arm", "late"),
    ]
    assert 99 < float(told[0][2]) <= 100


async def test_companion_with_something_left_to_do_is_left_alone(tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = f"while read -r line; do :; done; sleep 1.5; touch {done}"
    async with Companion(["/bin/sh", "-c", script]):
        pass
    assert not done.exists()
    async with asyncio.timeout(20):
        while not done.exists():
            await asyncio.sleep(0.05)


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")
async def test_companion_that_is_deaf_is_replaced_though_no_thread_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = tmp_path / "deaf"
    script = f"[ -e {deaf} ] || {{ exec 0<&-; touch {deaf}; exec sleep 5; }}; exec cat >/dev/null"

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with Companion(["/bin/sh", "-c", script]) as running:
        first = running.pid
        async with asyncio.timeout(20):
            while not deaf.exists():
                await asyncio.sleep(0.01)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            running.arm("something", 100)
        assert running.pid not in (None, first)


async def test_last_word_of_a_program_is_why_it_failed_however_much_it_said_before() -> None:
    script = "echo early >&2; sleep 0.1; seq 100000 >&2; echo line; echo the reason >&2; exit 3"
    with pytest.raises(CommandFailed, match=r"^sh ended with status 3: the reason$"):
        async with (
            asyncio.timeout(20),
            lines_of(["/bin/sh", "-c", script], silence_s=5) as lines,
        ):
            assert [line async for line in lines] == [b"line\n"]


def test_missing_tool_is_named_with_its_package() -> None:
    with pytest.raises(StartError, match=r"^nonesuch is not installed: apt-get install that$"):
        find_tool("nonesuch", "that")


async def test_child_holds_what_it_was_given_as_standard_input(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("held\n")
    descriptor = os.open(given, os.O_RDONLY | os.O_CLOEXEC)
    child = Child(["/bin/cat"], {}, stdin=descriptor)
    os.close(descriptor)
    assert (await child.wait(10)).stdout == b"held\n"
