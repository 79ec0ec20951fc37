"""Puts a catalog in the place of one that was lost; that one is kept beside it.

A power cut anywhere in here leaves either no catalog under the path, and the next start restores it
again, or the restored one, which says of itself that it is not settled yet.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from blockd.catalog.event_rows import HISTORY
from blockd.catalog.inspection import inspect_catalog
from blockd.catalog.store import migrate
from blockd.domain.errors import StartError
from blockd.domain.units import now_timestamp

#: A fact in a catalog that was restored and not yet compared with the disks; its value says from
#: what. While it stands, nothing of its journal is carried out.
UNSETTLED: Final = "restored"

#: A restored catalog counts on from here above the copy: whatever became of the lost file, and of
#: copies behind it, this one is the newest.
_COUNTS_ON_FROM: Final = 1 << 32


def restore_copy(path: Path, content: bytes, told: str) -> Sequence[Path]:
    """Make the content of a copy the catalog.

    Args:
        told: from what it was restored, for people.

    Returns:
        Where the files are that were in its place.

    Raises:
        StartError: it is no catalog after all, or cannot be written.
    """

    def fill(fresh: Path) -> None:
        fresh.write_bytes(content)

    return _put(path, fill, told, "UPDATE meta SET value = value + ? WHERE key = 'generation'")


def make_anew(path: Path, catalog_id: str, told: str) -> Sequence[Path]:
    """Make a catalog without rows under the id that the disks of a lost one bear.

    See `restore_copy`.
    """

    def fill(fresh: Path) -> None:
        with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
            migrate(connection)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'catalog_id'", [catalog_id])

    return _put(path, fill, told, "UPDATE meta SET value = ? WHERE key = 'generation'")


def _put(path: Path, fill: Callable[[Path], None], told: str, count: str) -> Sequence[Path]:
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in _files(fresh):
            left.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fill(fresh)
        found = inspect_catalog(fresh)
        if found.fault is not None:
            raise StartError(f"the copy of the catalog {found.fault}")
        with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
            # One file, without a log beside it; a newer schema is refused before anything is moved.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = FULL")
            migrate(connection)
            connection.execute("BEGIN")
            connection.execute(count, [_COUNTS_ON_FROM])
            connection.execute("REPLACE INTO meta VALUES (?, ?)", [UNSETTLED, told])
            # What was numbered after the copy is lost, and its numbers will come again.
            history = os.urandom(4).hex()
            connection.execute("REPLACE INTO meta VALUES (?, ?)", [HISTORY, history])
            connection.execute("COMMIT")
        _sync(fresh)
        aside = put_aside(path)
        fresh.rename(path)
        _sync(path.parent)
    except (OSError, sqlite3.Error) as err:
        raise StartError(f"catalog {path} cannot be restored: {err}") from err
    return aside


def put_aside(path: Path) -> Sequence[Path]:
    """Rename what is under the catalog's path, its logs included; the new names.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = now_timestamp().replace("-", "").replace(":", "")
    moved = []
    for file in _files(path):
        if file.name.endswith("-shm"):
            file.unlink(missing_ok=True)  # derived from the log
            continue
        new = path.with_name(f"{path.name}.lost-{stamp}{file.name.removeprefix(path.name)}")
        with suppress(FileNotFoundError):
            file.rename(new)
            moved.append(new)
    if moved:
        _sync(path.parent)
    return moved


def _files(path: Path) -> list[Path]:
    """A database and what SQLite puts beside it; the database first.

    Without it the others mean nothing, but beside another one they would.
    """
    return [path.with_name(path.name + end) for end in ("", "-wal", "-journal", "-shm")]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
