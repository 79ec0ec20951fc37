"""The service supervisor: sd_notify(3), and sockets that it opened, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Tell the supervisor, e.g. `READY=1` or `STOPPING=1`; no-op without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # A supervisor that went away is no reason to end, nor to fail at the end.
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())


def inherited_socket() -> socket.socket | None:
    """The listening socket that came with socket activation, None when there is none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=3)
