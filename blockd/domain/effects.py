"""Side effects, told one by one to whoever wants to know.

Every place that changes something outside the process's memory (a catalog commit, an LVM command
that writes, a device-mapper ioctl that changes a table, a link under /dev) announces itself here.
Metrics count them; the crash tests learn from them at which points a daemon or a host can die, so
that a new side effect cannot be forgotten by a list kept by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SideEffects:
    """The listener; this one does nothing. Names look like `lvm lvcreate` or `dm suspend`."""

    def before(self, name: str) -> None:
        """`name` is about to happen."""

    def started(self, name: str) -> None:
        """`name` is a process that now runs by itself."""

    def after(self, name: str) -> None:
        """`name` happened, or failed."""

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """`before` and `after` of a block."""
        self.before(name)
        try:
            yield
        finally:
            self.after(name)
