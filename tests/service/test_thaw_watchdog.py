"""The process that thaws guests, where its attempts hang, and nobody hears what it says."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from io import TextIOWrapper
from pathlib import Path

import pytest

from blockd.host import thaw_watchdog
from tests.support.guests import until
from tests.support.libvirt_daemon import LibvirtDaemon


@pytest.mark.parametrize("is_heard", [True, False])
async def test_watchdog_makes_another_attempt_where_one_hangs(
    tmp_path: Path, libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch, is_heard: bool
) -> None:
    heard, said = os.pipe()
    stderr = TextIOWrapper(os.fdopen(said, "wb", buffering=0), write_through=True)
    monkeypatch.setattr(sys, "stderr", stderr)
    if not is_heard:  # whoever read what it says has gone, perhaps with the daemon
        os.close(heard)
    domain = libvirtd.domain("web")
    assert domain.fsFreeze() == 2
    begun, python = tmp_path / "begun", tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nif [ ! -e {begun} ]; then touch {begun}; exec sleep 60; fi\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(thaw_watchdog, "_ATTEMPT_S", 2.0)
    monkeypatch.setattr(thaw_watchdog, "_RETRY_S", 0.1)
    monkeypatch.setattr(sys, "executable", str(python))
    async with asyncio.timeout(20):
        await asyncio.to_thread(
            thaw_watchdog.thaw, libvirtd.uri, domain.UUIDString(), threading.Event()
        )
    stderr.close()
    if is_heard:
        assert b"timed out" in os.read(heard, 4096)
        os.close(heard)
    assert begun.exists()
    assert await asyncio.to_thread(domain.fsThaw) == 0  # nothing is left to thaw


async def test_watchdog_leaves_a_guest_that_was_thawed_meanwhile(
    libvirtd: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thaw_watchdog, "_ATTEMPT_S", 0.3)
    watched, told = os.pipe()
    what = f"{libvirtd.uri} {libvirtd.domain('web').UUIDString()}"
    watching = threading.Thread(target=thaw_watchdog.watch, args=(watched,))
    watching.start()
    libvirtd.hang()
    os.write(told, f"arm 0 {what}\n".encode())
    await until(lambda: _is_thawing(what))
    os.write(told, f"disarm {what}\n".encode())
    await until(lambda: _is_over(what))
    os.close(told)
    await asyncio.to_thread(watching.join, 20)
    os.close(watched)
    assert not watching.is_alive()
    libvirtd.go_on()


async def _is_thawing(what: str) -> bool:
    return f"thaw {what}" in {thread.name for thread in threading.enumerate()}


async def _is_over(what: str) -> bool:
    return not await _is_thawing(what)
