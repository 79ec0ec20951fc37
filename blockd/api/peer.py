"""Who is on the other end of the socket, as the kernel tells it."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

#: `struct ucred`: pid_t, uid_t, gid_t. Source: unix(7), SO_PEERCRED.
_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, with the ids it had then. `pid` is 0 in a foreign namespace."""

    uid: int
    gid: int
    pid: int


def peer_of(transport: asyncio.BaseTransport | None) -> Peer | None:
    """The peer of a Unix-socket connection; None over TCP or when the connection is gone.

    Asked anew for each request: one `getsockopt` is cheaper than a cache that can go stale.
    """
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    return Peer(uid=uid, gid=gid, pid=pid)
