"""Snapshots that guests read: a real libvirtd, its test driver, which attaches nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from blockd.catalog import Transaction
from blockd.catalog.restoring import UNSETTLED
from blockd.domain.errors import (
    GuestRefused,
    NotFound,
    PreconditionFailed,
    StorageError,
    TransientState,
)
from blockd.domain.event import EventFilter
from blockd.domain.guest import Attachment, AttachmentStatus, GuestKey
from blockd.domain.intent import new_id
from blockd.domain.listing import Page, SnapshotFilter
from blockd.domain.snapshot import Consistency, NewSnapshot, Quiesce, Snapshot
from blockd.domain.states import Status
from blockd.domain.units import now_timestamp
from blockd.domain.volume import Volume
from blockd.host.hypervisor import Hypervisors
from blockd.service.shown_snapshots import ShownSnapshots, front_of_snapshot
from tests.support import stamps
from tests.support.file_driver import FileDriver
from tests.support.guests import Gate, a_volume, until, with_guests
from tests.support.libvirt_daemon import LibvirtDaemon
from tests.support.service import Running, idle, running

Runs = Callable[[], AbstractAsyncContextManager[Running]]


@pytest.fixture
def runs(tmp_path: Path, libvirtd: LibvirtDaemon) -> Runs:
    return partial(with_guests, tmp_path, libvirtd.uri)


@pytest.fixture
async def run(runs: Runs) -> AsyncIterator[Running]:
    async with runs() as started:
        yield started


async def a_snapshot(run: Running) -> tuple[Volume, Snapshot]:
    """Of a volume that has been written over since."""
    volume = await a_volume(run)
    path = (await run.service.volumes.device(volume.id)).path
    stamps.stamp(path, 1)
    made = await run.service.snapshots.create(NewSnapshot(volume.id, None, None, (), False))
    await idle(run)
    stamps.stamp(path, 2)
    return volume, await run.service.snapshots.get(made.id)


async def shown(run: Running, snapshot: Snapshot) -> bool:
    """Whether it has a device."""
    return await run.driver.disk_behind(snapshot.id) is not None


async def show(run: Running, snapshot: Snapshot) -> None:
    """Its device, as attaching makes it."""
    await run.driver.connect(front_of_snapshot(snapshot))


async def has(run: Running, snapshot: Snapshot, *domains: str) -> bool:
    """Whether these guests, and no other, are seen to have it."""
    seen = await run.service.snapshots.get(snapshot.id)
    return sorted(one.domain_name for one in seen.attachments) == sorted(domains)


async def findings(run: Running) -> list[str]:
    """What the doctor finds."""
    run.service.doctor._second_look_s = 0.01
    return [finding.id for finding in (await run.service.doctor.examine()).findings]


async def attach_by_row(run: Running, snapshot: Snapshot, status: AttachmentStatus) -> None:
    """As the catalog says it while an attachment is made, or made already."""
    uri = run.config.libvirt.uris[0]
    row = Attachment(
        new_id(), snapshot.id, GuestKey(uri, new_id()), "web", "vda", status, now_timestamp()
    )
    await run.catalog.write("row", lambda tx: tx.attachments.put(row))


async def test_snapshot_of_a_guest_is_in_use_and_not_deleted(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume, snapshot = await a_snapshot(run)
    place = (await run.service.events.since(None, EventFilter())).place
    domain = libvirtd.domain("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    seen = await run.service.snapshots.get(snapshot.id)
    assert seen.status is Status.IN_USE
    assert [one.target for one in seen.attachments] == ["vda"]
    wanted = EventFilter(resource_id=snapshot.id)
    (told,) = (await run.service.events.since(place, wanted)).events
    assert (told.kind, told.status) == ("snapshot", "in_use")
    assert told.resource is not None
    assert told.resource.status == "in_use"
    with pytest.raises(PreconditionFailed, match="attached to web: detach it first") as refused:
        await run.service.snapshots.delete(snapshot.id)
    assert refused.value.precondition == "protected_resource"
    assert (await run.service.volumes.get(volume.id)).status is Status.AVAILABLE

    domain.destroy()
    await until(partial(has, run, snapshot))
    assert (await run.service.snapshots.get(snapshot.id)).status is Status.AVAILABLE
    *_, gone = (await run.service.events.since(place, wanted)).events
    assert gone.status == "available"
    await run.service.snapshots.delete(snapshot.id)


async def test_lists_tell_which_snapshots_guests_have(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    libvirtd.define("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    told = await run.service.snapshots.page(
        SnapshotFilter(),
        Page(),
        lambda found, _: f"{[(str(one.status), len(one.attachments)) for one in found]}",
    )
    assert told == "[('in_use', 1)]"


async def test_device_goes_when_the_last_guest_lets_go(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    await show(run, snapshot)
    blue, green = (libvirtd.domain(name, [snapshot.id]) for name in ("blue", "green"))
    await until(partial(has, run, snapshot, "blue", "green"))
    blue.destroy()
    await until(partial(has, run, snapshot, "green"))
    assert await shown(run, snapshot)
    green.destroy()
    await until(partial(has, run, snapshot))
    await until(partial(_is_hidden, run, snapshot))


async def _is_hidden(run: Running, snapshot: Snapshot) -> bool:
    return not await shown(run, snapshot)


async def test_device_that_is_open_is_taken_away_later_and_the_snapshot_not_deleted_meanwhile(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    await show(run, snapshot)
    domain = libvirtd.domain("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    with open(run.driver.device(front_of_snapshot(snapshot)).path, "rb"):
        domain.destroy()
        await until(partial(has, run, snapshot))
        with pytest.raises(PreconditionFailed, match="open on this host") as refused:
            await run.service.snapshots.delete(snapshot.id)
        assert refused.value.precondition == "protected_resource"
        assert await shown(run, snapshot)
    await until(partial(_is_hidden, run, snapshot))
    await run.service.snapshots.delete(snapshot.id)


async def test_attachment_that_libvirt_refuses_leaves_neither_row_nor_device(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    libvirtd.domain("web")
    run.driver.gates["hide"] = gate = Gate()
    gate.set()
    with pytest.raises(GuestRefused, match="attach the disk: "):
        await run.service.attachments.attach_snapshot(snapshot.id, "web", None, None)
    assert gate.reached.is_set()  # so it had been shown
    assert await has(run, snapshot)
    assert not await shown(run, snapshot)
    assert (await run.service.snapshots.get(snapshot.id)).status is Status.AVAILABLE


async def test_snapshot_that_cannot_be_shown_is_not_attached(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    libvirtd.domain("web")
    run.driver.fail_next["connect"] = StorageError("no device now")
    with pytest.raises(StorageError, match="no device now"):
        await run.service.attachments.attach_snapshot(snapshot.id, "web", None, None)
    assert await has(run, snapshot)


@pytest.mark.parametrize("where", [(FileDriver, "connect"), (Hypervisors, "attach")])
async def test_attachment_that_fails_oddly_leaves_neither_row_nor_device(
    run: Running,
    libvirtd: LibvirtDaemon,
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[type, str],
) -> None:
    _, snapshot = await a_snapshot(run)
    libvirtd.domain("web")

    async def fail(*_: object) -> None:
        raise RuntimeError("never seen")

    monkeypatch.setattr(*where, fail)
    with pytest.raises(RuntimeError, match="never seen"):
        await run.service.attachments.attach_snapshot(snapshot.id, "web", None, None)
    assert await has(run, snapshot)
    assert not await shown(run, snapshot)


async def test_snapshot_that_is_being_made_or_not_there_is_not_attached(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("web")
    run.driver.gates["snapshot"] = gate = Gate()
    made = await run.service.snapshots.create(NewSnapshot(volume.id, None, None, (), False))
    with pytest.raises(TransientState, match="creating"):
        await run.service.attachments.attach_snapshot(made.id, "web", None, None)
    gate.set()
    await idle(run)
    for other in (volume.id, new_id()):
        with pytest.raises(NotFound, match="snapshot"):
            await run.service.attachments.attach_snapshot(other, "web", None, None)
        with pytest.raises(NotFound, match="snapshot"):
            await run.service.attachments.detach_snapshot(other, "web")


async def test_guest_that_has_it_is_not_given_it_again(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    libvirtd.define("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    with pytest.raises(PreconditionFailed, match="is attached to web already"):
        await run.service.attachments.attach_snapshot(snapshot.id, "web", None, None)
    with pytest.raises(PreconditionFailed, match=f"snapshot {snapshot.id} is .* not to db"):
        await run.service.attachments.detach_snapshot(snapshot.id, "db")


async def test_guest_that_is_defined_with_a_snapshot_finds_its_device(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    libvirtd.define("web", [snapshot.id])
    await until(partial(shown, run, snapshot))
    stamps.expect(run.driver.device(front_of_snapshot(snapshot)).path, 1)


async def test_device_of_an_attached_snapshot_is_there_after_a_restart(
    runs: Runs, libvirtd: LibvirtDaemon
) -> None:
    async with runs() as run:
        volume, snapshot = await a_snapshot(run)
        libvirtd.define("web", [snapshot.id])
        await until(partial(shown, run, snapshot))
        async with run.driver.turn():
            await run.driver.hide(snapshot.id)
    async with runs() as run:
        assert await shown(run, snapshot)
        stamps.expect(run.driver.device(front_of_snapshot(snapshot)).path, 1)
        stamps.expect((await run.service.volumes.device(volume.id)).path, 2)


async def test_shown_snapshot_whose_row_is_lost_comes_back_under_its_own_id(
    runs: Runs, libvirtd: LibvirtDaemon, tmp_path: Path
) -> None:
    """What a revert keeps lies on a disk that is named after something else."""
    async with runs() as run:
        volume, snapshot = await a_snapshot(run)
        await run.service.volumes.revert(volume.id, snapshot.id, keep_previous=True)
        await idle(run)
        rows = await run.catalog.read(lambda tx: tx.snapshots_of("sbs"))
        (kept,) = (row for row in rows if row.id != snapshot.id)
        assert kept.id not in kept.disk
        libvirtd.define("web", [kept.id])
        await until(partial(shown, run, kept))

        def lose(tx: Transaction) -> None:
            tx.remove_snapshot(kept.id)
            tx.put_meta(UNSETTLED, "the catalog was lost")

        await run.catalog.write("lost", lose)
    async with running(tmp_path) as run:
        back = await run.service.snapshots.get(kept.id)
        assert (back.disk, back.size_bytes) == (kept.disk, kept.size_bytes)


@pytest.mark.parametrize("status", list(AttachmentStatus))
async def test_what_a_daemon_left_that_died_while_it_attached_or_detached_is_put_away(
    runs: Runs, status: AttachmentStatus
) -> None:
    """libvirt knows of no such guest, which the first look finds."""
    async with runs() as run:
        _, snapshot = await a_snapshot(run)
        await show(run, snapshot)
    async with runs() as run:
        assert not await shown(run, snapshot)
        await show(run, snapshot)
        await attach_by_row(run, snapshot, status)
    async with runs() as run:
        await until(partial(has, run, snapshot))
        await until(partial(_is_hidden, run, snapshot))


async def test_guest_with_a_snapshot_alone_is_not_frozen(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume, snapshot = await a_snapshot(run)
    libvirtd.domain("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    with pytest.raises(GuestRefused, match="no running guest has volume"):
        await run.service.snapshots.create(
            NewSnapshot(volume.id, None, None, (), False, Quiesce.REQUIRE)
        )
    made = await run.service.snapshots.create(NewSnapshot(volume.id, None, None, (), False))
    await idle(run)
    loud = await run.service.snapshots.get(made.id)
    assert (loud.consistency, loud.frozen_ms) == (Consistency.CRASH, None)


async def test_volume_is_reverted_to_a_snapshot_that_a_guest_reads(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    """Thin: it takes nothing from the snapshot."""
    volume, snapshot = await a_snapshot(run)
    await show(run, snapshot)
    libvirtd.domain("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    await run.service.volumes.revert(volume.id, snapshot.id, keep_previous=False)
    await idle(run)
    stamps.expect((await run.service.volumes.device(volume.id)).path, 1)
    stamps.expect(run.driver.device(front_of_snapshot(snapshot)).path, 1)


async def test_volume_of_an_attached_snapshot_is_deleted_and_the_snapshot_stays(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume, snapshot = await a_snapshot(run)
    await show(run, snapshot)
    libvirtd.domain("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    await run.service.volumes.delete(volume.id)
    await idle(run)
    stamps.expect(run.driver.device(front_of_snapshot(snapshot)).path, 1)
    assert await has(run, snapshot, "web")


async def test_doctor_finds_nothing_with_an_attached_snapshot(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    await show(run, snapshot)
    libvirtd.define("web", [snapshot.id])
    await until(partial(has, run, snapshot, "web"))
    assert await findings(run) == []


async def test_doctor_finds_and_mends_devices_of_snapshots(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    _, snapshot = await a_snapshot(run)
    await show(run, snapshot)
    assert await findings(run) == [f"front-unknown:sbs/{snapshot.id}"]
    await run.service.doctor.fix([f"front-unknown:sbs/{snapshot.id}"])
    assert not await shown(run, snapshot)
    libvirtd.define("web", [snapshot.id])
    await until(partial(shown, run, snapshot))
    async with run.driver.turn():
        await run.driver.hide(snapshot.id)
    assert await findings(run) == [f"front-missing:sbs/{snapshot.id}"]
    await run.service.doctor.fix([f"front-missing:sbs/{snapshot.id}"])
    stamps.expect(run.driver.device(front_of_snapshot(snapshot)).path, 1)


async def test_settling_asked_for_while_one_is_under_way_comes_once_more(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def look(self: ShownSnapshots, resource_id: str, *_: object) -> bool:
        seen.append(resource_id)
        if len(seen) == 1:
            self.settle_soon(resource_id)  # rows have changed since they were read
        return True

    monkeypatch.setattr(ShownSnapshots, "_is_settled", look)
    run.service.attachments._shown.settle_soon("one")
    async with asyncio.timeout(20):
        while len(seen) < 2:
            await asyncio.sleep(0.01)
