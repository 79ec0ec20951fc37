"""A guest that was frozen is thawed, whatever happens: a real libvirtd, and the real watchdog.

The test driver counts file systems (two), so that a freeze or thaw says how many it changed: a
guest that is thawed already has none left to thaw.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockd.domain.errors import GuestRefused, StorageError
from blockd.domain.group import NewGroup
from blockd.domain.guest import GuestKey
from blockd.domain.snapshot import Consistency, NewSnapshot, Quiesce, Snapshot
from blockd.domain.states import Status
from blockd.domain.volume import Volume
from blockd.host.hypervisor import Hypervisors
from tests.support.guests import Gate, a_volume, has_users, is_well, until, with_guests
from tests.support.libvirt_daemon import LibvirtDaemon
from tests.support.service import Running, idle


@pytest.fixture
async def run(tmp_path: Path, libvirtd: LibvirtDaemon) -> AsyncIterator[Running]:
    async with with_guests(tmp_path, libvirtd.uri) as started:
        yield started


async def guest_with_volume(run: Running, libvirtd: LibvirtDaemon) -> tuple[Any, Volume]:
    """A running domain that is seen to have a new volume."""
    volume = await a_volume(run)
    domain = libvirtd.domain("web", [volume.id])
    await until(lambda: has_users(run, volume))
    return domain, volume


async def snapshot(run: Running, volume: Volume, quiesce: Quiesce = Quiesce.AUTO) -> Snapshot:
    """Asked for, perhaps not taken yet."""
    return await run.service.snapshots.create(
        NewSnapshot(volume.id, None, None, (), False, quiesce)
    )


async def taken(run: Running, asked: Snapshot) -> Snapshot:
    """What became of it."""
    await idle(run)
    return await run.service.snapshots.get(asked.id)


async def expect_thawed(domain: Any) -> None:
    """Whoever thaws a guest that is thawed thaws nothing."""
    assert await asyncio.to_thread(domain.fsThaw) == 0


async def is_thawed(domain: Any) -> bool:
    """Whether it is; it is so in any case after this."""
    froze = await asyncio.to_thread(domain.fsFreeze)
    if froze:
        await asyncio.to_thread(domain.fsThaw)
    return bool(froze)


async def journal(run: Running) -> int:
    """How many guests the catalog says may be frozen."""
    return len(await run.catalog.read(lambda tx: tx.attachments.frozen()))


async def test_success_is_frozen_at_the_instant_and_thawed_after(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    domain, volume = await guest_with_volume(run, libvirtd)
    run.driver.gates["snapshot"] = gate = Gate()
    asked = await snapshot(run, volume)
    await gate.reached.wait()
    assert await journal(run) == 1
    assert await asyncio.to_thread(domain.fsFreeze) == 0  # there is nothing left to freeze
    gate.set()
    made = await taken(run, asked)
    assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.FILESYSTEM)
    assert made.frozen_ms is not None
    await expect_thawed(domain)
    assert await journal(run) == 0


async def test_group_freezes_its_guests_before_anything_stands_still_and_thaws_after(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume, other = await a_volume(run), await a_volume(run, "other")
    domain = libvirtd.domain("web", [volume.id, other.id])
    await until(lambda: has_users(run, other))
    run.driver.gates["still"] = gate = Gate()
    new = NewGroup((volume.id, other.id), None, None, Quiesce.REQUIRE)
    asked = asyncio.create_task(run.service.groups.create(new))
    await gate.reached.wait()
    assert await journal(run) == 1
    assert await asyncio.to_thread(domain.fsFreeze) == 0  # there is nothing left to freeze
    gate.set()
    group = await asked
    assert {made.consistency for made in group.snapshots} == {Consistency.FILESYSTEM}
    assert {made.frozen_ms is None for made in group.snapshots} == {False}
    await expect_thawed(domain)
    assert await journal(run) == 0


async def test_volume_of_a_group_that_no_guest_has_was_not_quiet(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, volume = await guest_with_volume(run, libvirtd)
    other = await a_volume(run, "other")
    for_all = NewGroup((volume.id, other.id), None, None, Quiesce.REQUIRE)
    with pytest.raises(GuestRefused, match=f"no running guest has volume {other.id}"):
        await run.service.groups.create(for_all)
    group = await run.service.groups.create(replace(for_all, quiesce=Quiesce.AUTO))
    made, alone = group.snapshots
    assert (made.consistency, alone.consistency) == (Consistency.FILESYSTEM, Consistency.CRASH)
    assert (made.frozen_ms is None, alone.frozen_ms is None) == (False, True)


async def test_failure_of_storage_thaws(run: Running, libvirtd: LibvirtDaemon) -> None:
    domain, volume = await guest_with_volume(run, libvirtd)
    run.driver.fail_next["snapshot"] = StorageError("the disk is on fire")
    made = await taken(run, await snapshot(run, volume))
    assert (made.status, made.error) == (Status.ERROR, "the disk is on fire")
    await expect_thawed(domain)
    assert await journal(run) == 0


@pytest.mark.parametrize("quiesce", [Quiesce.AUTO, Quiesce.REQUIRE])
async def test_longer_than_the_deadline_the_watchdog_thaws(
    tmp_path: Path, libvirtd: LibvirtDaemon, quiesce: Quiesce
) -> None:
    async with with_guests(tmp_path, libvirtd.uri, max_freeze_s=0.5) as run:
        domain, volume = await guest_with_volume(run, libvirtd)
        run.driver.gates["snapshot"] = gate = Gate()
        asked = await snapshot(run, volume, quiesce)
        await gate.reached.wait()
        await until(lambda: is_thawed(domain))  # while storage still is at it
        gate.set()
        made = await taken(run, asked)
        if quiesce is Quiesce.AUTO:
            assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.CRASH)
        else:
            assert made.status is Status.ERROR
            assert "longer than max_freeze" in str(made.error)
        await expect_thawed(domain)


async def test_two_snapshots_of_one_guest_at_once_do_not_thaw_each_other(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    first, second = await a_volume(run), await a_volume(run, "other")
    domain = libvirtd.domain("web", [first.id, second.id])
    await until(lambda: has_users(run, first))
    freezes = run.service.snapshots._freezes
    order: list[str] = []

    async def quiet(name: str, volume: Volume, ends: asyncio.Event) -> Consistency:
        async with freezes.quiet([volume.id], Quiesce.REQUIRE) as how:
            order.append(name)
            await ends.wait()
        return how.of(volume.id)[0]

    ends = asyncio.Event()
    one = asyncio.create_task(quiet("one", first, ends))
    await until(lambda: _has_begun(order))
    other = asyncio.create_task(quiet("other", second, ends))
    for _ in range(50):  # as long as it would need, were it not to wait
        await run.catalog.read(lambda tx: tx.attachments.all())
    assert order == ["one"]
    ends.set()
    assert await asyncio.gather(one, other) == [Consistency.FILESYSTEM] * 2
    await expect_thawed(domain)


async def _has_begun(order: list[str]) -> bool:
    return bool(order)


async def test_guest_that_cannot_be_thawed_is_not_waited_for(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, volume = await guest_with_volume(run, libvirtd)
    freezes = run.service.snapshots._freezes
    (guest,) = await freezes._guests._having([volume.id])
    freezes._names[guest.key] = guest.name
    async with freezes._locks[guest.key]:  # an attempt at it is under way, and hangs
        freezes._thaw_later(guest.key, guest.name)
        made = await taken(run, await snapshot(run, volume))
        assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.CRASH)
        refused = await taken(run, await snapshot(run, volume, Quiesce.REQUIRE))
        assert refused.status is Status.ERROR
        assert "domain web may be frozen, and does not answer" in str(refused.error)
    await until(lambda: is_well(run))


async def test_thawed_by_somebody_else_is_not_called_consistent(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    domain, volume = await guest_with_volume(run, libvirtd)
    run.driver.gates["snapshot"] = gate = Gate()
    asked = await snapshot(run, volume)
    await gate.reached.wait()
    assert await asyncio.to_thread(domain.fsThaw) == 2
    gate.set()
    assert (await taken(run, asked)).consistency is Consistency.CRASH


async def test_request_that_is_cancelled_and_stop_both_thaw(
    tmp_path: Path, libvirtd: LibvirtDaemon
) -> None:
    async with with_guests(tmp_path, libvirtd.uri) as run:
        domain, volume = await guest_with_volume(run, libvirtd)
        run.driver.gates["snapshot"] = gate = Gate()
        request = asyncio.create_task(snapshot(run, volume))
        await gate.reached.wait()
        request.cancel()
    # The operation was cut short by the stop, and is in the journal; the guest is not frozen.
    await expect_thawed(domain)
    async with with_guests(tmp_path, libvirtd.uri) as run:
        await idle(run)  # it was taken up
        assert await journal(run) == 0
    await expect_thawed(domain)


async def test_daemon_killed_is_thawed_by_the_watchdog_and_at_the_next_start(
    tmp_path: Path, libvirtd: LibvirtDaemon
) -> None:
    for kills_watchdog in (False, True):
        victim = subprocess.Popen(
            [sys.executable, "-m", "tests.support.guest_victim", str(tmp_path), libvirtd.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert victim.stdin is not None
        assert victim.stdout is not None
        lines = iter(victim.stdout.readline, "")
        volume_id = next(line.strip() for line in lines if len(line) == 37)
        domain = libvirtd.domain(f"web-{kills_watchdog}", [volume_id])
        victim.stdin.write("go\n")
        victim.stdin.flush()
        assert any(line == "frozen\n" for line in lines)
        if kills_watchdog:
            for child in _children(victim.pid):
                os.kill(child, signal.SIGKILL)
        victim.kill()
        victim.communicate()
        if not kills_watchdog:
            await until(lambda domain=domain: is_thawed(domain))
    assert await asyncio.to_thread(domain.fsFreeze) == 0  # nobody is left to thaw it
    async with with_guests(tmp_path, libvirtd.uri) as run:
        await until(lambda: is_thawed(domain))
        await idle(run)
        await until(lambda: _is_noted(run))


async def _is_noted(run: Running) -> bool:
    return await journal(run) == 0


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    found = [(task / "children").read_text(encoding="ascii").split() for task in tasks.iterdir()]
    return [int(child) for of_task in found for child in of_task]


async def test_agent_gone_silent_is_thawed_as_soon_as_it_answers(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    domain, volume = await guest_with_volume(run, libvirtd)
    run.driver.gates["snapshot"] = gate = Gate()
    asked = await snapshot(run, volume)
    await gate.reached.wait()
    libvirtd.hang()
    gate.set()
    made = await taken(run, asked)
    assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.CRASH)
    (problem,) = (await run.service.host.health()).problems
    assert "domain web may be frozen" in problem
    assert await journal(run) == 1
    libvirtd.go_on()
    await until(lambda: is_well(run))
    await expect_thawed(domain)
    assert await journal(run) == 0


async def test_freeze_that_comes_late_is_thawed_though_a_thaw_came_before(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, volume = await guest_with_volume(run, libvirtd)
    ask = Hypervisors.ask_agent

    async def ask_and_hang(self: Hypervisors, key: GuestKey, timeout_s: float) -> None:
        await ask(self, key, timeout_s)
        libvirtd.hang()  # so that freeze and thaw are both on their way when it goes on

    with monkeypatch.context() as patch:
        patch.setattr(Hypervisors, "ask_agent", ask_and_hang)
        made = await taken(run, await snapshot(run, volume))
    assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.CRASH)
    libvirtd.go_on()
    await until(lambda: is_well(run))
    await expect_thawed(domain)


async def test_agent_that_never_answers_holds_nothing_up_for_long(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, volume = await guest_with_volume(run, libvirtd)
    libvirtd.hang()
    made = await taken(run, await snapshot(run, volume))
    assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.CRASH)
    assert made.frozen_ms is None
    libvirtd.go_on()


async def test_without_agent_or_paused_auto_goes_on_and_require_refuses(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    plain, paused, alone = [await a_volume(run, name) for name in ("plain", "paused", "alone")]
    libvirtd.domain("plain", [plain.id], agent=False)
    libvirtd.domain("paused", [paused.id]).suspend()
    for volume in (plain, paused):
        await until(lambda volume=volume: has_users(run, volume))
    for volume, reason in (
        (plain, "domain plain has no guest agent connected: install qemu-guest-agent in it"),
        (paused, "domain paused is paused"),
        (alone, f"no running guest has volume {alone.id}"),
    ):
        made = await taken(run, await snapshot(run, volume))
        assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.CRASH)
        with pytest.raises(GuestRefused, match=reason):
            await snapshot(run, volume, Quiesce.REQUIRE)
    assert await journal(run) == 0


async def test_none_leaves_the_guest_alone(run: Running, libvirtd: LibvirtDaemon) -> None:
    domain, volume = await guest_with_volume(run, libvirtd)
    run.driver.gates["snapshot"] = gate = Gate()
    asked = await snapshot(run, volume, Quiesce.NONE)
    await gate.reached.wait()
    assert await is_thawed(domain)
    gate.set()
    made = await taken(run, asked)
    assert (made.consistency, made.frozen_ms) == (Consistency.CRASH, None)
