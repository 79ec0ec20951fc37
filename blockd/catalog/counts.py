"""How many rows match a condition, counted once between two commits."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence


class Counts:
    """Totals of list conditions since the last commit.

    Counting walks every match, which a page of 100 out of 10,000 would pay each time; between two
    commits the total cannot change.
    """

    def __init__(self) -> None:
        self._totals: dict[tuple[str, tuple[object, ...]], int] = {}

    def forget(self) -> None:
        """Called after each commit; views that began before it go on filling what is dropped."""
        self._totals = {}

    def view(self) -> CountsView:
        """What a read transaction that begins now may use."""
        return CountsView(self._totals)


class CountsView:
    """The totals that are valid for one read transaction."""

    _MOST = 256

    def __init__(self, totals: dict[tuple[str, tuple[object, ...]], int]) -> None:
        self._totals = totals

    def total(self, connection: sqlite3.Connection, sql: str, args: Sequence[object]) -> int:
        """The one number that `sql` selects."""
        key = (sql, tuple(args))
        known = self._totals.get(key)
        if known is None:
            (known,) = connection.execute(sql, args).fetchone()
            if len(self._totals) < self._MOST:
                self._totals[key] = known
        return known
