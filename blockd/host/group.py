"""Who belongs to the group that may use the socket, as the host's user database says."""

from __future__ import annotations

import grp
import os
import pwd
import time

#: The database may be a server far away, and is asked in the event loop: not at every request.
_REMEMBER_S = 10.0


class Group:
    """A group by name. A group that does not exist has no members."""

    def __init__(self, name: str) -> None:
        try:
            self.gid: int | None = grp.getgrnam(name).gr_gid
        except KeyError:
            self.gid = None
        self._known: dict[int, tuple[float, bool]] = {}

    def admits(self, uid: int, gid: int) -> bool:
        """Root, this process's own user, and the members of the group.

        Membership goes by uid, never by a pid's entry in /proc, which can be another's by now.
        """
        if uid in (0, os.geteuid()):
            return True
        if self.gid is None:
            return False
        if gid == self.gid:
            return True
        asked_at, is_member = self._known.get(uid, (-_REMEMBER_S, False))
        now = time.monotonic()
        if now - asked_at >= _REMEMBER_S:
            is_member = self._is_member(uid)
            self._known[uid] = now, is_member
        return is_member

    def _is_member(self, uid: int) -> bool:
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            return False
        return self.gid in os.getgrouplist(user.pw_name, user.pw_gid)
