"""Odd domains, a libvirt that hangs, and calls that fail: no guest is lost from sight for others'.

A real libvirtd with libvirt's test driver, as in test_attachments.py and test_freezes.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import pytest

from blockd.domain.errors import FreezeNotBegun, GuestRefused, HypervisorUnreachable
from blockd.domain.group import NewGroup
from blockd.domain.guest import Guest, GuestKey
from blockd.domain.snapshot import Consistency, NewSnapshot, Quiesce
from blockd.domain.states import Status
from blockd.domain.volume import Volume, VolumeChange
from blockd.host import libvirt_connection, libvirt_domain
from blockd.host.hypervisor import Hypervisors
from blockd.host.thawing import ThawWatchdog
from tests.support.guests import Gate, a_volume, has_users, is_well, until, with_guests
from tests.support.libvirt_daemon import LibvirtDaemon, libvirt_daemon
from tests.support.service import Running, idle


@pytest.fixture
async def run(tmp_path: Path, libvirtd: LibvirtDaemon) -> AsyncIterator[Running]:
    async with with_guests(tmp_path, libvirtd.uri) as started:
        yield started


async def is_frozen(domain: Any) -> bool:
    """Whether it is, by whomever; it is left as it was."""
    froze = await asyncio.to_thread(domain.fsFreeze)
    if froze:
        await asyncio.to_thread(domain.fsThaw)
    return not froze


async def is_free(domain: Any) -> bool:
    """The opposite."""
    return not await is_frozen(domain)


async def taken(run: Running, volume: Volume) -> tuple[Status, Consistency | None]:
    """What became of a snapshot of it."""
    new = NewSnapshot(volume.id, None, None, (), False, Quiesce.AUTO)
    asked = await run.service.snapshots.create(new)
    await idle(run)
    made = await run.service.snapshots.get(asked.id)
    return made.status, made.consistency


async def frozen_rows(run: Running) -> int:
    return len(await run.catalog.read(lambda tx: tx.attachments.frozen()))


# what is seen


async def test_links_in_a_circle_of_another_domain_blind_nobody(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    circle = Path(f"/dev/shm/blockd-test-{os.getpid()}")
    circle.symlink_to(circle)
    try:
        odd = libvirtd.domain("odd", source=str(circle))
        volume = await a_volume(run)
        libvirtd.domain("web", [volume.id])
        await until(lambda: has_users(run, volume))
        assert await taken(run, volume) == (Status.AVAILABLE, Consistency.FILESYSTEM)
        with pytest.raises(GuestRefused, match="attach the disk"):  # the test driver's own word
            await run.service.attachments.attach((await a_volume(run)).id, "odd", None, None)
        odd.destroy()
    finally:
        circle.unlink()


async def test_domain_that_cannot_be_read_keeps_its_volumes_and_health_tells(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_odd, of_web = await a_volume(run), await a_volume(run, "other")
    odd = libvirtd.domain("odd", [of_odd.id])
    await until(lambda: has_users(run, of_odd))
    read = libvirt_domain.front_disks

    def refuse_odd(description: str) -> Any:
        if ET.fromstring(description).findtext("name") == "odd":
            raise RuntimeError("never seen")
        return read(description)

    with monkeypatch.context() as patch:
        patch.setattr(libvirt_domain, "front_disks", refuse_odd)
        libvirtd.domain("web", [of_web.id])
        await until(lambda: has_users(run, of_web))
        assert await has_users(run, of_odd)
        (problem,) = (await run.service.host.health()).problems
        assert "domain odd: what it has is not known: never seen" in problem
    odd.destroy()
    await until(lambda: is_well(run))
    await until(lambda: _has_no_users(run, of_odd))


async def _has_no_users(run: Running, volume: Volume) -> bool:
    return not await has_users(run, volume)


async def test_look_counts_though_verbs_of_other_volumes_begin_and_end_all_the_time(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume, watch = await a_volume(run), run.service.attachments._watch
    look = Hypervisors.guests
    libvirtd.domain("web", [volume.id])

    async def look_and_turn(self: Hypervisors, uri: str) -> Any:
        found = await look(self, uri)
        with watch.leaving("another"):
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hypervisors, "guests", look_and_turn)
        await until(lambda: has_users(run, volume))


async def test_connection_that_hangs_holds_up_no_other(
    tmp_path: Path, libvirtd: LibvirtDaemon
) -> None:
    with libvirt_daemon() as other:
        async with with_guests(tmp_path, other.uri, libvirtd.uri) as run:
            volume = await a_volume(run)
            other.hang()
            libvirtd.domain("web", [volume.id])
            began = time.monotonic()
            await until(lambda: has_users(run, volume))
            assert time.monotonic() - began < 5  # its keepalive takes 15 s
            other.go_on()


async def test_uuid_is_nobody_elses_whatever_others_call_themselves(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    web = libvirtd.define("web", [volume.id])
    libvirtd.define(web.UUIDString(), [volume.id])
    hypervisors = run.service.attachments._hypervisors
    assert (await hypervisors.find(web.UUIDString())).name == "web"
    assert (await hypervisors.find("web")).key.domain_id == web.UUIDString()
    await until(lambda: has_two(run, volume))
    with pytest.raises(GuestRefused, match="detach the disk"):  # and not: say from which
        await run.service.attachments.detach(volume.id, web.UUIDString())


async def has_two(run: Running, volume: Volume) -> bool:
    return len((await run.service.volumes.get(volume.id)).attachments) == 2


# what guests are told


@pytest.fixture
def bound_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test driver takes a bound only with a larger one for bursts (libvirt 9.0)."""
    bind = libvirt.virDomain.setBlockIoTune

    def with_bursts(self: Any, target: str, params: dict[str, int], flags: int) -> Any:
        return bind(self, target, {**params, "total_iops_sec_max": 10**6}, flags)

    monkeypatch.setattr(libvirt.virDomain, "setBlockIoTune", with_bursts)


def bounds(domain: Any) -> dict[str, str | None]:
    """The most operations a second of each disk, as its definition has them."""
    disks = ET.fromstring(domain.XMLDesc(0)).findall("./devices/disk")
    return {
        disk.find("target").get("dev"): disk.findtext("iotune/total_iops_sec") for disk in disks
    }  # type: ignore[union-attr]


@pytest.mark.usefixtures("bound_at_all")
async def test_disk_is_bound_by_whose_it_is_and_not_by_its_name(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    first, second = await a_volume(run), await a_volume(run, "other")
    domain = libvirtd.domain("web", [second.id, first.id])
    key = GuestKey(libvirtd.uri, domain.UUIDString())
    hypervisors = run.service.attachments._hypervisors
    await until(lambda: has_users(run, first))
    await until(lambda: _are_bound(domain, {"vda": "5000", "vdb": "5000"}))
    await hypervisors.limit(key, first.id, 400)
    assert bounds(domain) == {"vda": "5000", "vdb": "400"}
    await hypervisors.limit(key, (await a_volume(run)).id, 100)  # which it has not
    assert bounds(domain) == {"vda": "5000", "vdb": "400"}

    defined = libvirtd.define("off", [second.id, first.id])
    await until(lambda: _are_bound(defined, {"vda": "5000", "vdb": "5000"}))
    await hypervisors.limit(GuestKey(libvirtd.uri, defined.UUIDString()), first.id, 400)
    assert bounds(defined) == {"vda": "5000", "vdb": "400"}


async def _are_bound(domain: Any, wanted: dict[str, str]) -> bool:
    return bounds(domain) == wanted


@pytest.mark.usefixtures("bound_at_all")
async def test_bound_that_was_changed_while_libvirt_was_away_is_told_after_a_restart(
    tmp_path: Path, libvirtd: LibvirtDaemon
) -> None:
    async with with_guests(tmp_path, libvirtd.uri) as run:
        volume = await a_volume(run)
        domain = libvirtd.domain("web", [volume.id])
        await until(lambda: _are_bound(domain, {"vda": "5000"}))
        libvirtd.hang()
        await run.service.volumes.change(volume.id, VolumeChange(perf_iops=15000))
        await idle(run)
    libvirtd.go_on()
    assert bounds(domain) == {"vda": "5000"}
    async with with_guests(tmp_path, libvirtd.uri) as run:
        await until(lambda: _are_bound(domain, {"vda": "15000"}))


# connections


async def test_no_thread_to_be_had_is_not_the_end_of_a_connection(
    tmp_path: Path, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, []

    def refuse_once(self: threading.Thread) -> None:
        if self.name == "libvirt" and not refused:
            refused.append(self)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    async with with_guests(tmp_path, libvirtd.uri):  # which waits until all is well
        assert refused


async def test_opening_that_never_ends_is_not_waited_for_alone(
    tmp_path: Path, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, begun, ends = libvirt_connection._connect, [], threading.Event()

    def hang_once(uri: str) -> Any:
        begun.append(uri)
        if len(begun) == 1:
            ends.wait(30)
        return connect(uri)

    monkeypatch.setattr(libvirt_connection, "_connect", hang_once)
    monkeypatch.setattr(libvirt_connection, "CALL_S", 0.5)
    try:
        async with with_guests(tmp_path, libvirtd.uri):
            assert len(begun) == 2
    finally:
        ends.set()


async def test_more_guests_than_calls_at_once_are_all_frozen(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volumes = [await a_volume(run, f"v{number}") for number in range(40)]
    domains = [libvirtd.domain(one.name, [one.id]) for one in volumes]
    for volume in volumes:
        await until(lambda volume=volume: has_users(run, volume))  # type: ignore[misc]
    new = NewGroup(tuple(one.id for one in volumes), None, None, Quiesce.REQUIRE)
    group = await run.service.groups.create(new)
    assert {made.consistency for made in group.snapshots} == {Consistency.FILESYSTEM}
    assert not any([await is_frozen(domain) for domain in domains])


async def test_thaw_waits_for_no_other_call(
    tmp_path: Path, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_connection, "_MOST_CALLS", 1)
    async with with_guests(tmp_path, libvirtd.uri) as run:
        domain = libvirtd.domain("web")
        key = GuestKey(libvirtd.uri, domain.UUIDString())
        hypervisors: Any = run.service.attachments._hypervisors
        ends = threading.Event()
        hanging = asyncio.create_task(
            hypervisors._of(key).ask_domain(key.domain_id, "hang", lambda _: ends.wait(30), 30)
        )
        await asyncio.sleep(0.1)
        with pytest.raises(HypervisorUnreachable, match="freeze: no answer within"):
            await hypervisors.freeze(key, 0.5)
        assert await hypervisors.thaw(key, 5) == 0
        ends.set()
        await hanging


# thaws


async def test_clean_stop_leaves_a_thaw_that_is_owed_to_the_watchdog(
    tmp_path: Path, libvirtd: LibvirtDaemon
) -> None:
    async with with_guests(tmp_path, libvirtd.uri) as run:
        volume = await a_volume(run)
        domain = libvirtd.domain("web", [volume.id])
        await until(lambda: has_users(run, volume))
        run.driver.gates["snapshot"] = gate = Gate()
        asked = asyncio.create_task(taken(run, volume))
        await gate.reached.wait()
        libvirtd.hang()
        gate.set()
        assert await asked == (Status.AVAILABLE, Consistency.CRASH)
    await asyncio.sleep(6)  # longer than anybody waits for a process at the end
    libvirtd.go_on()
    await until(lambda: is_free(domain))


async def test_thaw_is_tried_again_whatever_it_fails_with(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_volume(run)
    domain = libvirtd.domain("web", [volume.id])
    await until(lambda: has_users(run, volume))
    thaw, look, failed = Hypervisors.thaw, Hypervisors.guest, list[str]()

    async def thaw_badly(self: Hypervisors, key: GuestKey, timeout_s: float) -> int:
        if len(failed) < 3:
            failed.append("thaw")
            raise (GuestRefused("not now") if len(failed) < 2 else MemoryError("none"))
        return await thaw(self, key, timeout_s)

    async def look_badly(self: Hypervisors, key: GuestKey) -> Guest | None:
        if failed:
            raise RuntimeError("can't start new thread")
        return await look(self, key)

    monkeypatch.setattr(Hypervisors, "thaw", thaw_badly)
    monkeypatch.setattr(Hypervisors, "guest", look_badly)
    assert await taken(run, volume) == (Status.AVAILABLE, Consistency.CRASH)
    assert await frozen_rows(run) == 1
    await until(lambda: is_well(run))
    assert not await is_frozen(domain)
    assert await frozen_rows(run) == 0
    assert len(failed) == 3


@pytest.mark.parametrize("what", ["watchdog", "agent"])
async def test_guest_that_somebody_else_froze_is_left_to_him(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    volume = await a_volume(run)
    domain = libvirtd.domain("web", [volume.id])
    await until(lambda: has_users(run, volume))

    def no_watchdog(*_: object) -> None:
        raise OSError("no more processes")

    async def not_taken(*_: object) -> int:
        raise FreezeNotBegun("Command guest-fsfreeze-freeze has been disabled")

    if what == "watchdog":
        monkeypatch.setattr(ThawWatchdog, "arm", no_watchdog)
    else:
        monkeypatch.setattr(Hypervisors, "freeze", not_taken)
    assert domain.fsFreeze() == 2
    assert await taken(run, volume) == (Status.AVAILABLE, Consistency.CRASH)
    assert domain.fsFreeze() == 0  # still
    assert await frozen_rows(run) == 0
    assert await is_well(run)


async def test_guest_whose_connection_is_not_configured_any_more_is_thawed_at_start(
    tmp_path: Path, libvirtd: LibvirtDaemon
) -> None:
    async with with_guests(tmp_path, libvirtd.uri) as run:
        domain = libvirtd.domain("web")
        key = GuestKey(libvirtd.uri, domain.UUIDString())
        await run.catalog.write("frozen", lambda tx: tx.attachments.add_freeze(key, "web"))
    assert domain.fsFreeze() == 2
    async with with_guests(tmp_path) as run:
        await until(lambda: is_well(run))
        assert await frozen_rows(run) == 0
    assert not await is_frozen(domain)
