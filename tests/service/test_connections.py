"""Connections to libvirt that cannot be opened, or do not say what there is: a real libvirtd."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from blockd.domain.errors import HypervisorUnreachable
from blockd.domain.guest import GuestKey
from blockd.domain.intent import new_id
from blockd.host import libvirt_connection, libvirt_domain
from blockd.host.hypervisor import Hypervisors
from tests.support.guests import is_well, until, with_guests
from tests.support.libvirt_daemon import LibvirtDaemon
from tests.support.service import Running


async def test_connection_that_is_refused_for_any_reason_is_unreachable_and_no_guests_refusal(
    libvirtd: LibvirtDaemon,
) -> None:
    uri = libvirtd.uri.replace("test+unix:///default", "qemu+unix:///system")  # no such driver
    hypervisors = Hypervisors([uri])
    with pytest.raises(HypervisorUnreachable, match=f"libvirt .*{uri[-20:]}: .*driver"):
        await hypervisors.guest(GuestKey(uri, new_id()))
    with pytest.raises(HypervisorUnreachable, match="driver"):
        await hypervisors.find("web")


async def test_domains_that_are_not_told_in_time_are_told_of_by_health(
    tmp_path: Path, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, go_on = libvirt_domain.describe, threading.Event()
    go_on.set()

    def hang(uri: str, domain: Any) -> Any:
        assert go_on.wait(30)
        return describe(uri, domain)

    monkeypatch.setattr(libvirt_domain, "describe", hang)
    try:
        async with with_guests(tmp_path, libvirtd.uri) as run:
            monkeypatch.setattr(libvirt_connection, "CALL_S", 2.0)
            for name in ("one", "two"):  # the first look may have begun with the other deadline
                sightings = run.service.attachments._watch.sightings(libvirtd.uri)
                libvirtd.domain(name)
                await until(lambda before=sightings: _has_looked(run, libvirtd, before))  # type: ignore[misc]
            go_on.clear()
            libvirtd.domain("web")
            await until(lambda: _tells(run, "list the domains: no answer within 2 s"))
            go_on.set()
            libvirtd.domain("other")  # an event, and so a look
            await until(lambda: is_well(run))
    finally:
        go_on.set()


async def _has_looked(run: Running, libvirtd: LibvirtDaemon, before: int) -> bool:
    return run.service.attachments._watch.sightings(libvirtd.uri) > before


async def _tells(run: Running, words: str) -> bool:
    return any(words in line for line in (await run.service.host.health()).problems)
