"""One SQLite file, one thread that writes it, one that reads it, and one that copies it.

WAL with `synchronous=FULL`: a commit is on the disk when it returns (sqlite.org/pragma.html;
NORMAL may lose commits at a power cut). The directory is synced when the file is new, because the
name of a new file is not durable before that.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from blockd.catalog.copy import CatalogImage, PackedImage, pack
from blockd.catalog.counts import Counts
from blockd.catalog.transaction import Transaction
from blockd.domain.effects import SideEffects
from blockd.domain.errors import CatalogUnavailable, StartError, StorageError
from blockd.domain.intent import new_id

T = TypeVar("T")

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 30.0


class Catalog:
    """Reads and writes as functions over a `Transaction`, run in the threads of this object.

    `trouble` is a line while the file cannot be written, None as a rule.
    """

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        copier: sqlite3.Connection,
        effects: SideEffects,
    ) -> None:
        self._path = path
        self._writer, self._reader, self._copier = writer, reader, copier
        self._effects = effects
        self.trouble: str | None = None
        self._troubled = asyncio.Event()
        self._write_thread = ThreadPoolExecutor(1, "catalog-write")
        self._read_thread = ThreadPoolExecutor(1, "catalog-read")
        self._copy_thread = ThreadPoolExecutor(1, "catalog-copy")
        self._counts = Counts()
        #: Grows with every commit, before whoever asked for it knows of it, and stands in the file.
        self.generation = Transaction(writer, None).generation()
        #: Set after each commit, for the one who keeps copies.
        self.changed = asyncio.Event()
        #: Called after each commit, and after each that failed, in the loop.
        self.told: list[Callable[[], None]] = [self.changed.set]
        #: Waits until a copy has what is committed; set by the one who keeps copies.
        self.keep_up: Callable[[], Awaitable[None]] | None = None

    async def write(self, label: str, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a transaction and commit it durably; nothing is kept if it raises.

        A cancelled caller does not stop a commit that has begun.

        Args:
            label: what the commit is for, as a side effect's name: `commit volume created`.

        Raises:
            CatalogUnavailable: the file cannot be written: no room, a failing disk.
        """
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._write_thread, self._commit, label, change)
        writing.add_done_callback(self._tell)
        try:
            result = await asyncio.shield(writing)
        except sqlite3.OperationalError as err:
            self.trouble = f"the catalog {self._path} cannot be written: {err}"
            self._troubled.set()
            raise CatalogUnavailable(f"the catalog cannot be written: {err}") from err
        self.trouble = None
        return result

    async def read(self, query: Callable[[Transaction], T]) -> T:
        """Run `query` on a consistent view of the last commit.

        Raises:
            CatalogUnavailable: the file cannot be read.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._read_thread, self._look, query)
        except sqlite3.OperationalError as err:
            raise CatalogUnavailable(f"the catalog cannot be read: {err}") from err

    async def heal(self) -> None:
        """Wait until it cannot be written, and return when it can again: one small commit each try.

        Nobody else may want to write, and the daemon would seem to be ill for ever.
        """
        await self._troubled.wait()
        self._troubled.clear()
        retry_s = _FIRST_RETRY_S
        while self.trouble is not None:
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)
            with suppress(CatalogUnavailable):
                await self.write("catalog tried", lambda tx: tx.put_meta("tried", new_id()))
        self._troubled.clear()

    async def copied(self) -> None:
        """Wait until a copy of the catalog has what is committed; at once where none is kept.

        Awaited before users are shown what cannot be made anew: see docs/decisions/0014.

        Raises:
            StorageError: there are copies, and none of them can be written.
        """
        if self.keep_up is not None:
            await self.keep_up()

    async def packed(self) -> PackedImage:
        """The whole catalog as of the last commit, ready to be written elsewhere.

        Raises:
            StorageError: the file cannot be read.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._copy_thread, self._pack)

    def _tell(self, _writing: asyncio.Future[Any]) -> None:
        for tell in self.told:
            tell()

    def _pack(self) -> PackedImage:
        # A connection of its own: it neither holds up commits nor readers, and sees no half of one.
        try:
            self._copier.execute("BEGIN")
            try:
                tx = Transaction(self._copier, None)
                catalog_id, generation = tx.meta("catalog_id") or "", tx.generation()
                content = self._copier.serialize()
            finally:
                self._copier.execute("ROLLBACK")
        except sqlite3.Error as err:
            raise StorageError(f"the catalog cannot be read: {err}") from err
        return pack(CatalogImage(catalog_id, generation, content))

    def _commit(self, label: str, change: Callable[[Transaction], T]) -> T:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            tx = Transaction(self._writer, None)
            result = change(tx)
            generation = tx.count_commit()
            with self._effects.around(f"commit {label}"):
                self._writer.execute("COMMIT")
                self._counts.forget()
                self.generation = generation
        except BaseException:
            # A full disk may leave it open, or have SQLite roll it back (sqlite.org,
            # lang_transaction.html, "Response To Errors Within A Transaction").
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        return result

    def _look(self, query: Callable[[Transaction], T]) -> T:
        counts = self._counts.view()
        self._reader.execute("BEGIN")
        try:
            return query(Transaction(self._reader, counts))
        finally:
            self._reader.execute("ROLLBACK")

    def close(self) -> None:
        """End the threads, after what they are doing, and close the file."""
        for thread in (self._write_thread, self._read_thread, self._copy_thread):
            thread.shutdown(wait=True)
        for connection in (self._copier, self._reader, self._writer):
            connection.close()


@asynccontextmanager
async def open_catalog(path: Path, effects: SideEffects | None = None) -> AsyncIterator[Catalog]:
    """The catalog in the file `path`, made and migrated as needed.

    Raises:
        StartError: the file cannot be opened, is no catalog, or was written by a newer blockd.
    """
    catalog = await asyncio.to_thread(_open, path, effects or SideEffects())
    try:
        yield catalog
    finally:
        await asyncio.to_thread(catalog.close)


def _open(path: Path, effects: SideEffects) -> Catalog:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_new = not path.exists()
        writer = _connect(path)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = FULL")
        # A statement that fires triggers notes how to take it back: in a file, unless told
        # otherwise, and what does not fit into the cache goes to the log again and again. With
        # both a change of 12,000 rows writes 4,700 pages instead of 151,000.
        writer.execute("PRAGMA temp_store = MEMORY")
        writer.execute("PRAGMA cache_size = -16384")
        migrate(writer)
        if is_new:
            _sync_directory(path.parent)
        return Catalog(path, writer, _connect(path), _connect(path), effects)
    except (OSError, sqlite3.Error) as err:
        raise StartError(f"catalog {path}: {err}") from err


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 10000")
    return connection


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the numbered files of `migrations/` that this catalog lacks, each in a transaction."""
    scripts = sorted(
        (
            entry
            for entry in resources.files("blockd.catalog").joinpath("migrations").iterdir()
            if entry.name.endswith(".sql")
        ),
        key=lambda entry: entry.name,
    )
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(scripts):
        raise StartError(
            f"the catalog has schema {done}, this blockd knows {len(scripts)}: "
            "install the blockd that wrote it, or a newer one"
        )
    for number, script in enumerate(scripts[done:], done + 1):
        text = script.read_text("utf-8")
        if number == 1:
            text += f"\nINSERT INTO meta VALUES ('catalog_id', '{new_id()}');"
        connection.executescript(f"BEGIN;\n{text}\nPRAGMA user_version = {number};\nCOMMIT;")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
