"""Agents that do not answer, for a moment or for good: asked before anything is frozen.

A real libvirtd; its test driver has no agents, so what libvirt's QEMU driver says of them is put
into the bindings. tests/kernel/test_guests.py has a real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from blockd.domain.errors import GuestRefused, HypervisorUnreachable
from blockd.domain.snapshot import Consistency, NewSnapshot, Quiesce, Snapshot
from blockd.domain.states import Status
from blockd.domain.volume import Volume
from blockd.host.hypervisor import Hypervisors
from tests.support.guests import a_volume, has_users, is_well, until, with_guests
from tests.support.libvirt_daemon import LibvirtDaemon
from tests.support.service import Running, idle


@pytest.fixture
async def run(tmp_path: Path, libvirtd: LibvirtDaemon) -> AsyncIterator[Running]:
    async with with_guests(tmp_path, libvirtd.uri) as started:
        yield started


class Agent:
    """That of every domain: it answers not to its first `silent` commands.

    Attributes:
        told: the commands that libvirt was asked to pass on, and whether it could.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, silent: int) -> None:
        self.silent, self.told = silent, list[tuple[str, bool]]()
        for name in ("getTime", "fsFreeze", "fsThaw"):
            self._put(monkeypatch, name, getattr(libvirt.virDomain, name))

    def _put(self, monkeypatch: pytest.MonkeyPatch, name: str, really: Any) -> None:
        def ask(domain: Any, *args: Any) -> Any:
            answers = len(self.told) >= self.silent
            self.told.append((name, answers))
            if not answers:
                raise _not_connected()
            return really(domain, *args)

        monkeypatch.setattr(libvirt.virDomain, name, ask)


def _not_connected() -> libvirt.libvirtError:
    """As libvirt 9.0 raises it while it connects to the agent."""
    says = "Guest agent is not responding: QEMU guest agent is not connected"
    error = libvirt.libvirtError(says)
    error.args = (says,)  # not the last one of this thread
    code, domain = libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_FROM_QEMU
    error.err = (code, domain, says, 2, "Guest agent is not responding: %s", None, None, -1, -1)
    return error


async def a_guest(run: Running, libvirtd: LibvirtDaemon) -> Volume:
    """A volume that the running domain `web` is seen to have."""
    volume = await a_volume(run)
    libvirtd.domain("web", [volume.id])
    await until(lambda: has_users(run, volume))
    return volume


async def taken(run: Running, volume: Volume, quiesce: Quiesce) -> Snapshot:
    """What became of a snapshot of it."""
    new = NewSnapshot(volume.id, None, None, (), False, quiesce)
    asked = await run.service.snapshots.create(new)
    await idle(run)
    return await run.service.snapshots.get(asked.id)


async def test_agent_that_is_silent_for_a_moment_is_asked_again_before_anything_is_frozen(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_guest(run, libvirtd)
    agent = Agent(monkeypatch, silent=2)
    made = await taken(run, volume, Quiesce.REQUIRE)
    assert (made.error, made.consistency) == (None, Consistency.FILESYSTEM)
    assert agent.told[:2] == [("getTime", False)] * 2
    assert all(answers for name, answers in agent.told if name != "getTime")


async def test_agent_that_falls_silent_after_the_request_is_asked_again(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_guest(run, libvirtd)
    agent = Agent(monkeypatch, silent=0)
    check = run.service.snapshots._freezes.check

    async def check_and_fall_silent(volume_ids: Any) -> None:
        await check(volume_ids)
        agent.silent = len(agent.told) + 2

    monkeypatch.setattr(run.service.snapshots._freezes, "check", check_and_fall_silent)
    made = await taken(run, volume, Quiesce.REQUIRE)
    assert (made.error, made.consistency) == (None, Consistency.FILESYSTEM)
    assert agent.told.count(("getTime", False)) == 2


async def test_agent_that_stays_silent_is_refused_by_its_name_and_nothing_is_frozen(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_guest(run, libvirtd)
    agent = Agent(monkeypatch, silent=10**6)
    told = "domain web has a guest agent that does not answer: .* see that qemu-guest-agent runs"
    with pytest.raises(GuestRefused, match=told):
        await taken(run, volume, Quiesce.REQUIRE)
    made = await taken(run, volume, Quiesce.AUTO)
    assert (made.status, made.consistency) == (Status.AVAILABLE, Consistency.CRASH)
    assert {name for name, _ in agent.told} == {"getTime"}
    assert await is_well(run)  # nobody says of it that it may be frozen


async def test_libvirt_that_is_away_for_a_moment_is_asked_again(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_guest(run, libvirtd)
    look, failed = Hypervisors.guest, list[str]()

    async def look_badly(self: Hypervisors, key: Any) -> Any:
        if len(failed) < 2:
            failed.append("connection refused")
            raise HypervisorUnreachable("connection refused")
        return await look(self, key)

    monkeypatch.setattr(Hypervisors, "guest", look_badly)
    made = await taken(run, volume, Quiesce.REQUIRE)
    assert (made.error, made.consistency) == (None, Consistency.FILESYSTEM)


async def test_libvirt_that_stays_away_is_told(run: Running, libvirtd: LibvirtDaemon) -> None:
    volume = await a_guest(run, libvirtd)
    with libvirtd.away(), pytest.raises(HypervisorUnreachable, match="Failed to connect socket"):
        await taken(run, volume, Quiesce.REQUIRE)
    libvirtd.hang()
    try:
        with pytest.raises(HypervisorUnreachable, match="does not answer within 2 s"):
            await taken(run, volume, Quiesce.REQUIRE)
    finally:
        libvirtd.go_on()
