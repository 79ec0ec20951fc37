"""The statements about the catalog itself: whose it is, and how many commits it has seen."""

from __future__ import annotations

import sqlite3


class MetaRows:
    """Part of a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def meta(self, key: str) -> str | None:
        """A fact about this catalog."""
        row = self._sql.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
        return None if row is None else str(row[0])

    def put_meta(self, key: str, value: str) -> None:
        """Note a fact about this catalog."""
        self._sql.execute("REPLACE INTO meta VALUES (?, ?)", [key, value])

    def drop_meta(self, key: str) -> None:
        """Forget a fact about this catalog."""
        self._sql.execute("DELETE FROM meta WHERE key = ?", [key])

    def generation(self) -> int:
        """How many commits this catalog has seen; a restored one counts on from far above."""
        return int(self.meta("generation") or 0)

    def count_commit(self) -> int:
        """The last statement of each commit; answers what `generation` is from then on."""
        (generation,) = self._sql.execute(
            "UPDATE meta SET value = value + 1 WHERE key = 'generation' RETURNING value"
        ).fetchone()
        return int(generation)
