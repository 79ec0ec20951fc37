"""`blockctl snapshot export|import|verify` and `blockctl job …`, with a real object store."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from blockd.cli import jobs
from tests.api.rig import NOBODY, PROJECT, Rig, served
from tests.cli.rig import ARGV, Cli, http, strange_server
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.object_store import Server, object_store

TARGET = "s3://backups/exports/monday.qcow2"
JOB = {
    "id": NOBODY,
    "kind": "export",
    "resource": "snapshot",
    "resource_id": NOBODY,
    "project_id": PROJECT,
    "bucket": "backups",
    "key": "exports/monday.qcow2",
    "volume_id": None,
    "snapshot_id": None,
    "state": "running",
    "bytes_done": 80 * 1024**2,
    "bytes_total": 320 * 1024**2,
    "rate": 40 * 1024**2,
    "eta": 66,
    "attempt": 2,
    "error": None,
    "content_digest": None,
    "created_at": "2026-08-17T13:11:16.000000Z",
    "started_at": "2026-08-17T13:11:16.000000Z",
    "finished_at": None,
}
ENDED = {
    **JOB,
    "state": "succeeded",
    "bytes_done": 320 * 1024**2,
    "rate": None,
    "eta": None,
    "content_digest": "ab" * 32,
    "finished_at": "2026-08-17T13:11:20.000000Z",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest_asyncio.fixture
async def store(server: Server) -> AsyncIterator[FaultyStore]:
    async with FaultyStore(server).serve() as proxy:
        yield proxy


@pytest_asyncio.fixture
async def daemon(tmp_path: Path, store: FaultyStore) -> AsyncIterator[Rig]:
    async with served(tmp_path, store.section) as rig:
        yield rig


@pytest_asyncio.fixture(autouse=True)
async def _monday(cli: Cli) -> None:
    await cli.ok("volume", "create", "data", "--size", "2M")
    await cli.ok("snapshot", "create", "data", "monday")


def _hang(store: FaultyStore) -> None:
    store.faults.append(Fault(lambda kind: kind.startswith("PUT part"), "hang"))


async def test_export_import_and_verify_end_with_one_line_each(cli: Cli) -> None:
    out = (await cli.ok("snapshot", "export", "monday", TARGET)).out
    assert out.startswith(f'exported snapshot "monday" to {TARGET}: ')
    assert out.count("\n") == 1
    out = (await cli.ok("snapshot", "import", TARGET.removeprefix("s3://"), "again")).out
    assert out.startswith(f'imported {TARGET} as snapshot "again": ')
    out = (await cli.ok("snapshot", "verify", TARGET)).out
    assert out.startswith(f"{TARGET} is whole: ")
    jobs = (await cli.ok("job", "list", "--json")).json
    assert [job["kind"] for job in jobs] == ["verify", "import", "export"]
    assert len({job["content_digest"] for job in jobs}) == 1
    assert jobs[0]["content_digest"] in (await cli.ok("snapshot", "show", "again")).out


async def test_job_list_and_show_for_people(cli: Cli) -> None:
    await cli.ok("snapshot", "export", "monday", TARGET)
    lines = (await cli.ok("job", "list")).out.splitlines()
    assert lines[0].split() == ["KIND", "OBJECT", "STATE", "DONE", "ID"]
    assert lines[1].split()[:3] == ["export", TARGET, "succeeded"]
    job_id = lines[1].split()[-1]
    shown = (await cli.ok("job", "show", job_id[:8])).out
    assert job_id in shown
    assert "succeeded" in shown
    assert (await cli.ok("job", "wait", job_id)).out.startswith(f"export of {TARGET} succeeded: ")
    assert (await cli("job", "show", "abcdefgh")).failed(3).startswith("there is no job")
    assert "first 8 characters" in (await cli("job", "show", "abc")).failed(2)
    assert "is succeeded" in (await cli("job", "cancel", job_id)).failed(5)


async def test_no_wait_tells_the_job_and_cancel_ends_it(cli: Cli, store: FaultyStore) -> None:
    _hang(store)
    out = (await cli.ok("snapshot", "export", "monday", TARGET, "--no-wait")).out
    assert out.startswith(f'exporting snapshot "monday" to {TARGET}: job ')
    job_id = out.split()[-1]
    await store.hanging.wait()
    assert (await cli.ok("job", "list", "--state", "running", "--quiet")).id == job_id
    assert (await cli.ok("job", "cancel", job_id)).out.endswith("is cancelled\n")
    assert "was cancelled" in (await cli("job", "wait", job_id)).failed(1)


async def test_timeout_leaves_the_job_running(cli: Cli, store: FaultyStore) -> None:
    _hang(store)
    argv = ("snapshot", "export", "monday", TARGET, "--timeout", "100ms")
    assert "goes on in the daemon" in (await cli(*argv)).failed(4)
    store.released.set()
    [job] = (await cli.ok("job", "list", "--json")).json
    await cli.ok("job", "wait", job["id"])


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("snapshot", "export", "monday", "s3://backups"), 2, "write s3://BUCKET/KEY"),
        (("snapshot", "export", "monday", "s3://nobucket/some.qcow2"), 2, "no bucket"),
        (("snapshot", "export", "tuesday", TARGET), 3, "no snapshot"),
        (("snapshot", "import", "s3://backups/missing.qcow2"), 2, "there is no object"),
        (("snapshot", "verify", "s3://backups/missing.qcow2"), 2, "there is no object"),
    ],
)
async def test_what_cannot_be_done_is_one_line(
    cli: Cli, argv: tuple[str, ...], code: int, words: str
) -> None:
    assert words in (await cli(*argv)).failed(code)


async def test_failure_of_the_job_is_one_line_with_its_reason(cli: Cli, store: FaultyStore) -> None:
    refused = {"status": 403, "code": "AccessDenied"}
    store.faults.append(Fault(lambda kind: kind.startswith("PUT"), "status", **refused))
    said = (await cli("snapshot", "export", "monday", TARGET)).failed(1)
    assert said.startswith('export of snapshot "monday" failed: ')
    assert "may not use bucket backups" in said


async def test_bar_shows_on_a_terminal_and_leaves_one_line(cli: Cli, store: FaultyStore) -> None:
    store.latency_s = 0.2
    ran = await cli.on_terminal("snapshot", "export", "monday", TARGET, columns=120)
    assert ran.code == 0
    assert "export of snapshot" in ran.out
    assert "━" in ran.out
    assert f'exported snapshot "monday" to {TARGET}' in ran.out


async def _read_until(descriptor: int, words: bytes) -> bytes:
    data = b""
    async with asyncio.timeout(30):
        while words not in data:
            data += await asyncio.to_thread(os.read, descriptor, 65536)
    return data


async def _on_terminal(cli: Cli) -> tuple[Any, int]:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *ARGV,
        *("snapshot", "export", "monday", TARGET),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=cli.environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    return process, ours


@pytest.mark.parametrize(
    ("typed", "code", "said", "state"),
    [
        (b"c\n", 1, b"was cancelled", "cancelled"),
        (b"d\n", 130, b"running", "running"),
        (b"w\n", 0, b"exported snapshot", "succeeded"),
    ],
)
async def test_interrupt_on_a_terminal_asks_what_is_meant(
    cli: Cli, store: FaultyStore, typed: bytes, code: int, said: bytes, state: str
) -> None:
    _hang(store)
    process, terminal = await _on_terminal(cli)
    await store.hanging.wait()
    await _read_until(terminal, b"export of")
    process.send_signal(signal.SIGINT)
    await _read_until(terminal, b"[w]ait on?")
    os.write(terminal, typed)
    if typed == b"w\n":
        store.released.set()
    await _read_until(terminal, said)
    async with asyncio.timeout(30):
        assert await process.wait() == code
    os.close(terminal)
    [job] = (await cli.ok("job", "list", "--json")).json
    assert job["state"] == state
    store.released.set()


async def _asked(cli: Cli, store: FaultyStore) -> tuple[Any, int]:
    """An export that hangs, interrupted once: the question stands."""
    _hang(store)
    process, terminal = await _on_terminal(cli)
    await store.hanging.wait()
    await _read_until(terminal, b"export of")
    process.send_signal(signal.SIGINT)
    await _read_until(terminal, b"[w]ait on?")
    return process, terminal


async def _exit_code(process: Any, terminal: int) -> int:
    async with asyncio.timeout(30):
        code: int = await process.wait()
    os.close(terminal)
    return code


async def test_second_interrupt_leaves_the_job_running(cli: Cli, store: FaultyStore) -> None:
    process, terminal = await _asked(cli, store)
    process.send_signal(signal.SIGINT)
    await _read_until(terminal, b"goes on in the daemon: blockctl job")
    assert await _exit_code(process, terminal) == 130
    [job] = (await cli.ok("job", "list", "--json")).json
    assert job["state"] == "running"


async def test_answer_that_is_none_is_asked_for_again(cli: Cli, store: FaultyStore) -> None:
    process, terminal = await _asked(cli, store)
    os.write(terminal, b"yes\n")
    await _read_until(terminal, b"[w]ait on?")
    os.write(terminal, b"cancel\n")
    await _read_until(terminal, b"was cancelled")
    assert await _exit_code(process, terminal) == 1


@pytest.mark.parametrize("typed", [b"c\n", b"d\n"])
async def test_job_that_ended_while_we_asked_is_told_as_it_is(
    cli: Cli, store: FaultyStore, typed: bytes
) -> None:
    process, terminal = await _asked(cli, store)
    store.released.set()
    [job] = (await cli.ok("job", "list", "--json")).json
    await cli.ok("job", "wait", job["id"])
    os.write(terminal, typed)
    await _read_until(terminal, b"exported snapshot")
    assert await _exit_code(process, terminal) == 0


async def test_interrupt_without_a_terminal_leaves_the_job_running(
    cli: Cli, store: FaultyStore
) -> None:
    _hang(store)
    process = await cli.start("snapshot", "export", "monday", TARGET)
    await store.hanging.wait()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"running: it goes on in the daemon: blockctl job wait" in err
    store.released.set()


async def test_wait_outlives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    first = iter([http(200, JOB), b"", b"", http(200, JOB)])
    async with strange_server(tmp_path / "t", lambda _: next(first, http(200, ENDED))):
        ran = await Cli(tmp_path / "t").ok("job", "wait", NOBODY)
    assert ran.out == f"export of {TARGET} succeeded: 320 MiB in 4.0 s (80 MiB/s)\n"


async def test_timeout_holds_though_the_daemon_does_not_answer(tmp_path: Path) -> None:
    first = iter([http(200, JOB)])
    async with strange_server(tmp_path / "t", lambda _: next(first, None)):
        async with asyncio.timeout(30):
            ran = await Cli(tmp_path / "t")("job", "wait", NOBODY, "--timeout", "200ms")
    said = ran.failed(4)
    assert said.startswith(f"export of {TARGET} takes longer than 0.2 s: ")
    assert f"blockctl job cancel {NOBODY}" in said


async def test_bar_tells_rate_time_left_and_attempt(tmp_path: Path) -> None:
    # Once for the command, twice to be seen.
    first = iter([http(200, {**JOB, "state": "queued"}), *[http(200, JOB)] * 2])
    async with strange_server(tmp_path / "t", lambda _: next(first, http(200, ENDED))):
        ran = await Cli(tmp_path / "t").on_terminal("job", "wait", NOBODY, columns=160)
    assert ran.code == 0
    for word in ("queued", "80.0/320.0 MiB", "40 MiB/s", "1:06 left", "attempt 2"):
        assert word in ran.out


async def test_key_cannot_steer_the_terminal(cli: Cli) -> None:
    told = (await cli.ok("snapshot", "export", "monday", "backups/a\u202eb.qcow2")).out
    told += (await cli.ok("snapshot", "verify", "backups/a\u202eb.qcow2")).out
    told += (await cli("snapshot", "import", "backups/\u202eb.qcow2")).failed(2)
    assert "\u202e" not in told
    assert told.count("a\\u202eb") == 2


async def test_list_is_short_but_hides_nothing_that_is_under_way(
    cli: Cli, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST_LISTED", 1)
    await cli.ok("snapshot", "create", "data", "tuesday")
    await cli.ok("snapshot", "export", "tuesday", "backups/tuesday.qcow2")
    _hang(store)
    await cli.ok("snapshot", "export", "monday", TARGET, "--no-wait")
    await store.hanging.wait()
    await cli.ok("snapshot", "verify", "backups/tuesday.qcow2")

    async def listed(*more: str) -> list[tuple[str, str]]:
        found = (await cli.ok("job", "list", "--json", *more)).json
        return [(job["kind"], job["state"]) for job in found]

    export, verify = ("export", "succeeded"), ("verify", "succeeded")
    under_way = ("export", "running")
    assert await listed() == [verify, under_way]
    assert await listed("--kind", "export") == [under_way]
    assert await listed("--state", "succeeded") == [verify, export]
    assert await listed("--limit", "1") == [verify]
    assert await listed("--all") == [verify, under_way, export]


async def test_shell_completes_ids_of_jobs(cli: Cli, store: FaultyStore) -> None:
    await cli.ok("snapshot", "export", "monday", TARGET)
    _hang(store)
    await cli.ok("snapshot", "export", "monday", TARGET, "--no-wait")
    running, ended = [job["id"] for job in (await cli.ok("job", "list", "--json")).json]

    async def complete(*words: str) -> set[str]:
        environment = {
            "_BLOCKCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["blockctl", *words]),
            "COMP_CWORD": str(len(words)),
        }
        process = await asyncio.create_subprocess_exec(
            *ARGV, env=cli.environment(environment), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return set(out.decode().split())

    assert await complete("job", "show", "") == {running, ended}
    assert await complete("job", "show", ended[:8]) == {ended}
    assert await complete("job", "cancel", "") == {running}
