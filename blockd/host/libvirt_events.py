"""libvirt's own event loop, which runs in a thread: see decision 22."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from blockd.host.libvirt_connection import bindings, reason_of

log = structlog.get_logger()

_RETRY_S: Final = 1.0


@contextmanager
def event_loop() -> Iterator[None]:
    """libvirt's event loop in a thread, without which there are no events and no keepalive."""
    libvirt = bindings()
    libvirt.registerErrorHandler(lambda *_: None, None)  # else it writes to stderr by itself
    libvirt.virEventRegisterDefaultImpl()
    ends = threading.Event()

    def run() -> None:
        while not ends.is_set():
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as err:  # without it there is no event ever more
                log.warning("libvirt's event loop", reason=reason_of(err))
                ends.wait(_RETRY_S)

    timer = libvirt.virEventAddTimeout(-1, lambda *_: None, None)
    thread = threading.Thread(target=run, name="libvirt-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        libvirt.virEventUpdateTimeout(timer, 0)  # which ends the wait that is under way
        thread.join(timeout=5)
        libvirt.virEventRemoveTimeout(timer)
