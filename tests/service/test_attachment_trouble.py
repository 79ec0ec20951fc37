"""Attaching and detaching that fail oddly, or are cut short: rows and devices are settled at once.

A real libvirtd with libvirt's test driver, as in test_attachments.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockd.catalog import Transaction
from blockd.domain.errors import CatalogUnavailable, GuestRefused
from blockd.domain.guest import AttachmentStatus
from blockd.domain.volume import Volume
from blockd.host.hypervisor import Hypervisors
from tests.support.guests import a_volume, has_users, until, with_guests
from tests.support.libvirt_daemon import LibvirtDaemon
from tests.support.service import Running


@pytest.fixture
async def run(tmp_path: Path, libvirtd: LibvirtDaemon) -> AsyncIterator[Running]:
    async with with_guests(tmp_path, libvirtd.uri) as started:
        yield started


async def fail_oddly(*_: object, **__: object) -> Any:
    raise RuntimeError("never seen")


async def test_attachment_that_fails_oddly_leaves_no_row(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("web")
    monkeypatch.setattr(Hypervisors, "attach", fail_oddly)
    with pytest.raises(RuntimeError, match="never seen"):
        await run.service.attachments.attach(volume.id, "web", None, None)
    assert not await has_users(run, volume)


async def test_detachment_that_fails_oddly_leaves_it_attached(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("web", [volume.id])
    await until(lambda: has_users(run, volume))
    monkeypatch.setattr(Hypervisors, "detach", fail_oddly)
    with pytest.raises(RuntimeError, match="never seen"):
        await run.service.attachments.detach(volume.id, "web")
    assert await _statuses(run, volume) == ["attached"]


async def _statuses(run: Running, volume: Volume) -> list[str]:
    return [str(one.status) for one in (await run.service.volumes.get(volume.id)).attachments]


async def test_verb_that_fails_tells_its_own_reason_though_its_row_cannot_be_settled(
    run: Running, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_volume(run)
    libvirtd.domain("web")
    write = run.catalog.write

    async def write_badly(label: str, change: Any) -> Any:
        if label == "volume not attached":
            raise CatalogUnavailable("no space left")
        return await write(label, change)

    monkeypatch.setattr(run.catalog, "write", write_badly)
    with pytest.raises(GuestRefused, match="attach the disk"):  # the test driver's own word
        await run.service.attachments.attach(volume.id, "web", None, None)


async def cut_short(tmp_path: Path, libvirtd: LibvirtDaemon) -> tuple[Any, Volume]:
    """A running domain, and its volume as a daemon leaves it that dies while it detaches it."""
    async with with_guests(tmp_path, libvirtd.uri) as run:
        volume = await a_volume(run)
        domain = libvirtd.domain("web", [volume.id])
        await until(lambda: has_users(run, volume))

        def begin(tx: Transaction) -> None:
            (row,) = tx.attachments.of(volume.id)
            tx.attachments.put(replace(row, status=AttachmentStatus.DETACHING))

        await run.catalog.write("detaching", begin)
    return domain, volume


async def test_detachment_cut_short_goes_on_when_libvirt_comes_back_after_the_start(
    tmp_path: Path, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, volume = await cut_short(tmp_path, libvirtd)

    async def let_go(*_: object, live: bool) -> None:
        assert live
        await asyncio.to_thread(domain.destroy)  # the test driver detaches nothing

    monkeypatch.setattr(Hypervisors, "detach", let_go)
    async with AsyncExitStack() as stack:
        with libvirtd.away():
            run = await stack.enter_async_context(
                with_guests(tmp_path, libvirtd.uri, awaits_libvirt=False)
            )
            await until(lambda: _tells(run, "; tried again"))
            assert await _statuses(run, volume) == ["detaching"]
        await until(lambda: _has_no_users(run, volume))
        assert (await run.service.volumes.get(volume.id)).last_detached_at is not None


async def _tells(run: Running, words: str) -> bool:
    return any(words in line for line in (await run.service.host.health()).problems)


async def _has_no_users(run: Running, volume: Volume) -> bool:
    return not await has_users(run, volume)


async def test_detachment_cut_short_that_libvirt_refuses_then_leaves_it_attached(
    tmp_path: Path, libvirtd: LibvirtDaemon
) -> None:
    _, volume = await cut_short(tmp_path, libvirtd)
    async with with_guests(tmp_path, libvirtd.uri) as run:
        await until(lambda: _is_attached(run, volume))


async def _is_attached(run: Running, volume: Volume) -> bool:
    return await _statuses(run, volume) == ["attached"]
