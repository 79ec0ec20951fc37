"""The service supervisor: sd_notify(3), and sockets that it opened, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Tell the supervisor, e.g. `READY=1` or `STOPPING=1`; no-op without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())


def inherited_socket() -> socket.socket | None:
    """The listening socket that came with socket activation, None when there is none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=3)
