"""What libvirt tells of guests, in the volumes' references: a real libvirtd, its test driver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from blockd.domain.errors import GuestRefused, InUse, PreconditionFailed
from blockd.domain.event import EventFilter
from blockd.domain.listing import Page, VolumeFilter
from blockd.domain.snapshot import NewSnapshot
from blockd.domain.states import Status
from blockd.domain.volume import Volume
from tests.support.guests import a_volume, is_well, until, with_guests
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


async def users(run: Running, volume: Volume) -> list[tuple[str, str, str]]:
    """Who has it: domain, target, status."""
    seen = await run.service.volumes.get(volume.id)
    return [(one.domain_name, one.target, str(one.status)) for one in seen.attachments]


async def test_disk_attached_by_hand_is_seen_and_its_end_too(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    place = (await run.service.events.since(None, EventFilter())).place
    domain = libvirtd.domain("web", [volume.id])
    await until(partial(users, run, volume))
    assert await users(run, volume) == [("web", "vda", "attached")]
    seen = await run.service.volumes.get(volume.id)
    assert (seen.status, seen.last_detached_at) == (Status.IN_USE, None)
    (told,) = (await run.service.events.since(place, EventFilter(resource_id=volume.id))).events
    assert told.status == "in_use"

    domain.destroy()
    await until(lambda: _is(run, volume, Status.AVAILABLE))
    seen = await run.service.volumes.get(volume.id)
    assert seen.attachments == ()
    assert seen.last_detached_at is not None


async def _is(run: Running, volume: Volume, status: Status) -> bool:
    return (await run.service.volumes.get(volume.id)).status is status


async def test_volume_of_guest_that_is_off_is_neither_deleted_nor_reverted(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    snapshot = await run.service.snapshots.create(NewSnapshot(volume.id, None, None, (), False))
    await idle(run)
    libvirtd.define("web", [volume.id])
    await until(lambda: _is(run, volume, Status.IN_USE))
    with pytest.raises(InUse):
        await run.service.volumes.delete(volume.id)
    with pytest.raises(InUse):
        await run.service.volumes.revert(volume.id, snapshot.id, keep_previous=True)
    shown = await run.service.snapshots.get(snapshot.id)
    assert shown.parent is not None
    assert shown.parent.status is Status.IN_USE
    assert await users(run, volume) == [("web", "vda", "attached")]


async def test_list_by_domain_finds_its_volumes_alone(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume, _ = await a_volume(run), await a_volume(run, "other")
    domain = libvirtd.domain("web", [volume.id])
    await until(partial(users, run, volume))

    async def ids(domain_id: str) -> str:
        wanted = VolumeFilter(product_resource_id=domain_id)
        return await run.service.volumes.page(
            wanted, Page(), lambda found, total: f"{total} {[one.id for one in found]}"
        )

    assert await ids(domain.UUIDString()) == f"1 {[volume.id]}"
    assert await ids(volume.id) == "0 []"


async def test_two_guests_with_one_volume_are_both_told(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    for name in ("blue", "green"):
        libvirtd.define(name, [volume.id])
    await until(lambda: _has(run, volume, 2))
    with pytest.raises(
        PreconditionFailed, match=r"attached to (blue, green|green, blue): say from which"
    ):
        await run.service.attachments.detach(volume.id, None)
    assert [user[2] for user in await users(run, volume)] == ["attached", "attached"]


async def _has(run: Running, volume: Volume, count: int) -> bool:
    return len(await users(run, volume)) == count


async def test_attachment_that_libvirt_refuses_leaves_nothing(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("web")
    with pytest.raises(GuestRefused, match="attach the disk: "):
        await run.service.attachments.attach(volume.id, "web", None, None)
    assert await users(run, volume) == []
    assert await _is(run, volume, Status.AVAILABLE)
    assert (await run.service.volumes.get(volume.id)).last_detached_at is None
    with pytest.raises(GuestRefused, match="there is no domain nobody"):
        await run.service.attachments.attach(volume.id, "nobody", None, None)


async def test_attached_volume_is_not_given_to_another_guest(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("blue", [volume.id])
    libvirtd.domain("green")
    await until(partial(users, run, volume))
    with pytest.raises(PreconditionFailed, match="attached to blue: detach it first"):
        await run.service.attachments.attach(volume.id, "green", None, None)


async def test_detachment_that_libvirt_refuses_leaves_it_attached(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("web", [volume.id])
    await until(partial(users, run, volume))
    with pytest.raises(GuestRefused, match="detach the disk"):
        await run.service.attachments.detach(volume.id, "web")
    assert await users(run, volume) == [("web", "vda", "attached")]
    assert (await run.service.volumes.get(volume.id)).last_detached_at is None


async def test_what_happened_while_nobody_looked_is_seen_at_start(
    runs: Runs, libvirtd: LibvirtDaemon
) -> None:
    async with runs() as run:
        old, new = await a_volume(run, "old"), await a_volume(run, "new")
        domain = libvirtd.domain("web", [old.id])
        await until(partial(users, run, old))
    domain.destroy()
    libvirtd.domain("web", [new.id])
    async with runs() as run:
        await until(partial(users, run, new))
        assert await users(run, old) == []
        assert (await run.service.volumes.get(old.id)).last_detached_at is not None


async def test_while_libvirt_is_away_the_last_that_is_known_stays_and_health_tells(
    run: Running, libvirtd: LibvirtDaemon
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("web", [volume.id])
    await until(partial(users, run, volume))
    libvirtd.stop()
    await until(lambda: _tells(run, "; tried again"))
    assert await users(run, volume) == [("web", "vda", "attached")]
    with pytest.raises(InUse):
        await run.service.volumes.delete(volume.id)
    libvirtd.start()
    await until(lambda: is_well(run))
    await until(lambda: _is(run, volume, Status.AVAILABLE))  # the test driver has forgotten it


async def _tells(run: Running, words: str) -> bool:
    return any(words in line for line in (await run.service.host.health()).problems)


async def test_attachments_of_a_connection_not_configured_any_more_are_forgotten(
    runs: Runs, libvirtd: LibvirtDaemon, tmp_path: Path
) -> None:
    async with runs() as run:
        volume = await a_volume(run)
        libvirtd.domain("web", [volume.id])
        await until(partial(users, run, volume))
    async with running(tmp_path) as run:
        assert await users(run, volume) == []
        assert await _is(run, volume, Status.AVAILABLE)
