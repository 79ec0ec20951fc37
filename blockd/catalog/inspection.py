"""Whether the file of the catalog is there and whole, seen before anything is written to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockd.domain.errors import StartError

#: `PRAGMA application_id` of migration 4; catalogs from before have none.
APPLICATION_ID: Final = 0x626C6B64

_MAGIC: Final = b"SQLite format 3\0"
_BROKEN: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class FoundCatalog:
    """What there is under the catalog's path.

    Attributes:
        fault: what is wrong with it, to follow its path in a sentence; None: it is sound.
        holds_nothing: there is no file, or one in which nothing was ever written.
        catalog_id, generation: of a sound one.
    """

    fault: str | None
    holds_nothing: bool = False
    catalog_id: str = ""
    generation: int = -1


def inspect_catalog(path: Path) -> FoundCatalog:
    """Look at the file; it is as it was when this returns.

    Raises:
        StartError: it cannot be read, which says nothing about what is in it.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
    except FileNotFoundError:
        return FoundCatalog("is missing", holds_nothing=True)
    except OSError as err:
        raise _cannot_be_read(path, err.strerror or str(err)) from err
    if not begin:
        return FoundCatalog("is empty", holds_nothing=True)
    if begin != _MAGIC:
        return FoundCatalog("is not a database of SQLite")
    try:
        # Read only: who closes a database last writes its log into it, broken or not.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            return _look(opened)
    except sqlite3.Error as err:
        if (err.sqlite_errorcode & 0xFF) in _BROKEN:
            return FoundCatalog(f"is broken: {err}")
        raise _cannot_be_read(path, str(err)) from err


def _look(connection: sqlite3.Connection) -> FoundCatalog:
    # Indexes are compared with their tables, too: 50 ms for 10,000 rows.
    ((first, *_), *_) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if first != "ok":
        return FoundCatalog(f"is broken: {' '.join(str(first).split())}")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if not tables:  # a first start that did not come to its first commit
        return FoundCatalog("is empty", holds_nothing=True)
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id not in (0, APPLICATION_ID) or not {"meta", "volumes"} <= tables:
        return FoundCatalog("is another program's database")
    facts = dict(connection.execute("SELECT key, value FROM meta"))
    if "catalog_id" not in facts:
        return FoundCatalog("has no id")
    return FoundCatalog(
        None, catalog_id=facts["catalog_id"], generation=int(facts.get("generation", 0))
    )


def _cannot_be_read(path: Path, reason: str) -> StartError:
    return StartError(
        f"catalog {path} cannot be read ({reason}): see to its disk and its rights; once it is "
        "lost for good, move it away, and blockd goes on with the copy in the volume group"
    )
